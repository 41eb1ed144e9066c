"""What the adversary may do."""
