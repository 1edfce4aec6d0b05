"""What runs the application: processes, their event loops, and how both end."""
