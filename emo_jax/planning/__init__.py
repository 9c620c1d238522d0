"""Planning: memory and speed of a training or denoising step on devices that need not be present."""
