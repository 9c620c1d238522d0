"""EMO (Emote Portrait Alive, arXiv 2402.17485) in JAX: talking and singing videos from a portrait and a voice."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emo_jax.generation.pipeline import EmoPipeline

__all__ = ["EmoPipeline", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports `EmoPipeline` on first access, so that `import emo_jax` and the command line start without JAX."""
    if name == "EmoPipeline":
        from emo_jax.generation.pipeline import EmoPipeline

        return EmoPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
