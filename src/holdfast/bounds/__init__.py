"""Proofs: lower bounds of a network's margins over all that a threat allows."""
