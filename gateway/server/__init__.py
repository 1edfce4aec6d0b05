"""What runs the application: processes, the event loop, and the end of both."""
