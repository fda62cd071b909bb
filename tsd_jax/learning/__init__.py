"""What an iteration learns, and from what."""
