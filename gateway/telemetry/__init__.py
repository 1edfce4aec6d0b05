"""What the gateway tells its operators: log lines and metrics."""
