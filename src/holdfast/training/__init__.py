"""Training: the loop, its state, its data and its processes; shared by hardening and generation."""
