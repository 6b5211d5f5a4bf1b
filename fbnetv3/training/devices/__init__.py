"""What depends on the device that trains: memory, precision, algorithms, and losses that arrive late."""
