"""Stages, state, losses, the jitted step and checkpoints."""
