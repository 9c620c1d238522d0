"""Records, transforms and the input pipeline. Nothing here imports jax: the workers must not start a backend."""
