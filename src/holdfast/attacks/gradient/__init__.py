"""Attacks that ascend a gradient within the ball of eps."""
