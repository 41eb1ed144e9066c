"""One perturbation, one patch or one network for many inputs."""
