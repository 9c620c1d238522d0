"""FLOPs and activation memory of a training step, counted from shapes without compiling."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend.core import Jaxpr, jaxprs_in_params
from ml_collections import ConfigDict

from emo_jax.models.emo import EMO
from emo_jax.ops.attention import traced_for
from emo_jax.training.step import TrainState, make_flat_loss

Shapes = Any  # A pytree of arrays or of `jax.ShapeDtypeStruct`s


def step_flops(emo: EMO, config: ConfigDict, state: TrainState, batch: Mapping[str, Shapes]) -> int:
    """Counts the FLOPs that a training step needs: forward and backward pass, without recomputation.

    Only matrix products and convolutions count (Chowdhery et al. 2022, arXiv 2204.02311, Appendix B). This is the
    numerator of the model FLOP utilisation. Nothing is compiled; at full size the count takes a few seconds.

    Args:
        emo: the networks.
        config: the full config; its `train.stage` selects the loss.
        state: the training state, or its shapes.
        batch: {name: array or shape} of the global batch of a step.
    """
    loss, key = _scalar_loss(emo, config)
    with traced_for("cpu"):
        return gradient_flops(loss, state.trained, state.frozen, batch, key)


def computed_flops(emo: EMO, config: ConfigDict, state: TrainState, batch: Mapping[str, Shapes]) -> int:
    """Counts the FLOPs that a step executes: `step_flops` plus recomputation (remat). Arguments as `step_flops`."""
    loss, key = _scalar_loss(emo, config)
    with traced_for("cpu"):
        return count_flops(jax.grad(loss), state.trained, state.frozen, batch, key)


def step_activations(emo: EMO, config: ConfigDict, state: TrainState, batch: Mapping[str, Shapes]) -> int:
    """Counts the bytes that the forward pass keeps for the backward pass, per clip. Arguments as `step_flops`.

    The result is the difference between a batch of two and a batch of one, so that weights cancel out.
    """
    loss, key = _scalar_loss(emo, config)

    def residuals(size: int) -> int:
        part = {name: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype) for name, a in batch.items()}
        return residual_bytes(loss, state.trained, state.frozen, part, key)

    return residuals(2) - residuals(1)


def residual_bytes(function: Callable[..., Any], *arguments: Shapes) -> int:
    """Counts the bytes of a function's residuals for its gradient with respect to the first argument.

    Arguments that the backward pass reads are included.
    """

    def backward(first: Shapes, *rest: Shapes) -> Any:
        return jax.vjp(lambda first: function(first, *rest), first)[1]

    residuals = jax.tree.leaves(jax.eval_shape(backward, *arguments))
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in residuals)


def gradient_flops(function: Callable[..., Any], *arguments: Shapes) -> int:
    """Counts the FLOPs of a function's value and its gradient with respect to the first argument.

    The count is done in forward mode, whose products are those of the backward pass, transposed, and which never
    recomputes.
    """
    first, *rest = arguments

    def forward(first: Shapes, tangent: Shapes, *rest: Shapes) -> Any:
        return jax.jvp(lambda first: function(first, *rest), (first,), (tangent,))

    return count_flops(forward, first, first, *rest)


def count_flops(function: Callable[..., Any], *arguments: Shapes) -> int:
    """Counts the FLOPs of a function's products and convolutions: two per multiply-add."""
    return jaxpr_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def jaxpr_flops(jaxpr: Jaxpr) -> int:
    """Counts the same of a function that has been traced already."""
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _scalar_loss(emo: EMO, config: ConfigDict) -> tuple[Callable[..., Any], Shapes]:
    """Returns (loss(trained, frozen, batch, key), shape of a key) for the config's stage."""
    loss = make_flat_loss(emo, config)
    return lambda *arguments: loss(*arguments)[0], jax.eval_shape(lambda: jax.random.key(0))


def _equation_flops(equation: Any) -> int:
    """Counts one equation of a jaxpr: a conditional by its most expensive branch, a `while` loop by one iteration."""
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * equation.outvars[0].aval.size * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
    if name == "conv_general_dilated":
        return _convolution_flops(equation)
    inner = [jaxpr_flops(jaxpr) for jaxpr in jaxprs_in_params(params)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _convolution_flops(equation: Any) -> int:
    """Counts a convolution: padding is included, the zeros inside a transposed convolution's input are not."""
    kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
    taps = math.prod(kernel[i] for i in numbers[1:])  # of one output: input channels times kernel positions
    return 2 * equation.outvars[0].aval.size * taps // math.prod(equation.params["lhs_dilation"])
