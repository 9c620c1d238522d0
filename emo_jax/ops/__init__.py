"""Attention and convolution, implemented for each platform."""
