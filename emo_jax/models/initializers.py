"""Initialisers of parameters, which modules declare in the standard Flax way (`kernel_init=...`).

`Module.init` draws with JAX, as for any Flax module. `EMO.init` draws the same distributions with NumPy, each parameter
from a key that depends on its path alone (`Initializer.draw`): switching a part off keeps the values of the others, and
no random draw is compiled for each of a hundred shapes, which would take half a minute.
"""

import contextlib
import contextvars
import dataclasses
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from emo_jax.ops import random


@dataclasses.dataclass(frozen=True)
class Initializer:
    """Initialiser of a parameter, drawn with JAX (`__call__`) or with NumPy (`draw`)."""

    def __call__(self, key: Any, shape: Sequence[int], dtype: Any = jnp.float32) -> Any:
        """Returns a parameter drawn with JAX; inside `declarations`, a `Declaration` that holds it."""
        value = self.sample(key, tuple(shape)).astype(dtype)
        return Declaration(value, self) if _DECLARES.get() else value

    def sample(self, key: Any, shape: tuple[int, ...]) -> jax.Array:
        """Returns a parameter drawn with JAX."""
        raise NotImplementedError

    def draw(self, path: str, shape: tuple[int, ...], seed: Sequence[int]) -> np.ndarray:
        """Returns a parameter, float32, drawn with NumPy.

        Args:
            path: path in the params tree, such as 'vae/encoder/conv_in/kernel'.
            shape: shape of the parameter.
            seed: integers; the draw depends on them and on the path.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Constant(Initializer):
    """Equal values everywhere."""

    value: float

    def sample(self, key: Any, shape: tuple[int, ...]) -> jax.Array:
        """Returns the constant array."""
        return jnp.full(shape, self.value)

    def draw(self, path: str, shape: tuple[int, ...], seed: Sequence[int]) -> np.ndarray:
        """Returns the constant array."""
        return np.full(shape, self.value, np.float32)


@dataclasses.dataclass(frozen=True)
class FanInNormal(Initializer):
    """Normal with standard deviation gain / sqrt(fan-in) (LeCun et al. 1998).

    Attributes:
        gain: factor of the standard deviation.
        same_as: (name, other): the draw uses the path with `name` replaced by `other`, and so equals that parameter's.
    """

    gain: float = 1.0
    same_as: tuple[str, str] | None = None

    def sample(self, key: Any, shape: tuple[int, ...]) -> jax.Array:
        """Returns independent normal values."""
        return self.gain * random.normal(key, shape) / math.sqrt(math.prod(shape[:-1]))

    def draw(self, path: str, shape: tuple[int, ...], seed: Sequence[int]) -> np.ndarray:
        """Returns normal values."""
        path = path.replace(*self.same_as) if self.same_as else path
        rng = np.random.default_rng([*seed, zlib.crc32(path.encode())])
        return self.gain * rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(math.prod(shape[:-1])))


@dataclasses.dataclass(frozen=True)
class Computed(Initializer):
    """Values given by a function of the shape.

    Attributes:
        function: shape -> float32 NumPy array.
    """

    function: Callable[[tuple[int, ...]], np.ndarray]

    def sample(self, key: Any, shape: tuple[int, ...]) -> jax.Array:
        """Returns the function's values."""
        return jnp.asarray(self.function(shape))

    def draw(self, path: str, shape: tuple[int, ...], seed: Sequence[int]) -> np.ndarray:
        """Returns the function's values."""
        return self.function(shape)


ZEROS = Constant(0.0)
ONES = Constant(1.0)
FAN_IN_NORMAL = FanInNormal()


@flax.struct.dataclass
class Declaration(meta.AxisMetadata):
    """A parameter together with the initialiser that its module declares, as Flax metadata of the params tree."""

    value: Any
    initializer: Initializer = flax.struct.field(pytree_node=False)

    def unbox(self) -> Any:
        """Returns the parameter; Flax calls this where a module reads it."""
        return self.value

    def replace_boxed(self, val: Any) -> "Declaration":
        """Returns a declaration of another value."""
        return dataclasses.replace(self, value=val)

    def add_axis(self, index: int, params: Any) -> "Declaration":
        """Returns the declaration unchanged; initialisers name no axes."""
        return self

    def remove_axis(self, index: int, params: Any) -> "Declaration":
        """Returns the declaration unchanged."""
        return self


@contextlib.contextmanager
def declarations() -> Iterator[None]:
    """Within this context, `Module.init` returns params whose leaves are `Declaration`s."""
    token = _DECLARES.set(True)
    try:
        yield
    finally:
        _DECLARES.reset(token)


def require_declarations(tree: Any) -> None:
    """Checks that every leaf of a params tree is a `Declaration`.

    Raises:
        TypeError: a parameter declares no initialiser.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda a: isinstance(a, Declaration)):
        if not isinstance(leaf, Declaration):
            raise TypeError(f"parameter {jax.tree_util.keystr(path)} declares no models.initializers.Initializer")


_DECLARES = contextvars.ContextVar("declares", default=False)
