"""What learns from the fans."""
