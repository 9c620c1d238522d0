"""Training: the stages, their losses, the jitted step, the loop, metrics and sample videos."""
