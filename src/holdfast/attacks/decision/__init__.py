"""Attacks that ask for the model's labels alone."""
