"""EMO (Emote Portrait Alive, arXiv 2402.17485) in JAX: a portrait and a voice become a talking or singing video."""

__version__ = "0.1.0"
