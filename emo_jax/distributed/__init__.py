"""Mesh, placement of parameters and activations, and runs of several processes."""
