"""Programs that later processes load without tracing them.

JAX's cache of compilations still traces and lowers a program to find its key, which takes seconds. Here the lowered
program is kept, under a key that follows from the package's sources, the versions of JAX and Flax, the config and the
shapes, wherever the package is installed; its compilation comes from JAX's cache.
"""

import pathlib
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from emo_jax import cache
from emo_jax.files import atomic_write


class KeptProgram:
    """A function that is traced for each signature of its arguments, or loaded from the cache of programs.

    Args:
        function: a pure function of arrays in any pytrees.
        key: says what the function computes, apart from its arguments' shapes: equal keys, equal programs.
        compiler_options: as in `jax.jit`.
    """

    def __init__(self, function: Callable, key: str, compiler_options: dict[str, Any] | None = None):
        self._function, self._key, self._options = function, key, compiler_options
        self._programs: dict[str, Callable[[Sequence[Any]], Any]] = {}

    def __call__(self, *args: Any) -> Any:
        """Runs the function."""
        leaves, tree = jax.tree.flatten(args)
        signature = f"{tree}{[(jnp.shape(a), str(jnp.result_type(a))) for a in leaves]}"
        if signature not in self._programs:
            path = cache.entry(f"{_settings()} {self._key}{signature}")
            self._programs[signature] = self._traced(tree) if path is None else self._kept(path, leaves, tree)
        return self._programs[signature](leaves)

    def _cache_size(self) -> int:
        return len(self._programs)

    def _traced(self, tree: Any) -> Callable[[Sequence[Any]], Any]:
        program = jax.jit(self._function, compiler_options=self._options)
        return lambda leaves: program(*jax.tree.unflatten(tree, leaves))

    def _kept(self, path: pathlib.Path, leaves: Sequence[Any], tree: Any) -> Callable[[Sequence[Any]], Any]:
        """Returns the program of a file, which is written if it is missing or damaged."""
        found = _load(path)
        if found is None:
            try:
                found = self._export(leaves, tree)
            except (ValueError, NotImplementedError):  # such as a kernel that JAX does not export
                return self._traced(tree)
            _save(path, *found)
        exported, out_tree = found
        program = jax.jit(exported.call, compiler_options=self._options)
        return lambda leaves: jax.tree.unflatten(out_tree, program(*map(_as_data, leaves)))

    def _export(self, leaves: Sequence[Any], tree: Any) -> tuple[jax.export.Exported, Any]:
        """Traces the function; returns it as a function of leaves without random keys, and the structure of results."""
        out_tree = None

        def flat(*data: Any) -> list[Any]:
            nonlocal out_tree
            restored = [_as_key(a, like) for a, like in zip(data, leaves, strict=True)]
            results, out_tree = jax.tree.flatten(self._function(*jax.tree.unflatten(tree, restored)))
            return results

        shapes = [jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)) for a in map(_as_data, leaves)]
        return jax.export.export(jax.jit(flat))(*shapes), out_tree


def _settings() -> tuple[Any, ...]:
    """Returns the settings of JAX on which a traced program depends."""
    names = "jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable"
    return jax.default_backend(), *(getattr(jax.config, name) for name in names)


def _is_key(a: Any) -> bool:
    return isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key)


def _as_data(a: Any) -> Any:
    return jax.random.key_data(a) if _is_key(a) else a


def _as_key(a: Any, like: Any) -> Any:
    return jax.random.wrap_key_data(a) if _is_key(like) else a


def _load(path: pathlib.Path) -> tuple[jax.export.Exported, Any] | None:
    try:
        data, skeleton = pickle.loads(path.read_bytes())
        program = jax.export.deserialize(bytearray(data))
    except Exception:  # missing or damaged: it is traced again
        return None
    cache.note_use(path)
    return program, jax.tree.structure(skeleton)


def _save(path: pathlib.Path, program: jax.export.Exported, out_tree: Any) -> None:
    skeleton = jax.tree.unflatten(out_tree, range(out_tree.num_leaves))  # structures of classes cannot be pickled
    try:
        with atomic_write(path) as partial:
            partial.write_bytes(pickle.dumps((bytes(program.serialize()), skeleton)))
    except OSError:  # a full disk: the program is only not kept
        return
    cache.note_use(path)
