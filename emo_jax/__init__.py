"""EMO (Emote Portrait Alive, arXiv 2402.17485) in JAX: a portrait and a voice become a talking or singing video."""

__version__ = "0.1.0"


def __getattr__(name):
    """`emo_jax.EmoPipeline`, imported when asked for: the command line must answer before jax is loaded."""
    if name == "EmoPipeline":
        from emo_jax.generation.pipeline import EmoPipeline

        return EmoPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
