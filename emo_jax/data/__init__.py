"""Records, transforms and the input pipeline. Nothing here imports JAX, so that data workers start no backend."""
