"""The FLOPs and activations that a training step needs, counted from shapes; the FLOPs that devices could do."""

import math

import jax
from jax.extend.core import jaxprs_in_params

from emo_jax.ops.attention import traced_for
from emo_jax.training.step import make_flat_loss


def step_flops(emo, config, state, batch):
    """FLOPs that a step of the config's stage needs: forward and backward, without what memory makes it compute anew.

    Matrix products and convolutions count, nothing else (Chowdhery et al. 2022, arXiv 2204.02311, Appendix B).
    Nothing is computed or compiled: at full size it takes some seconds.

    Args:
        state: the TrainState, or its shapes. batch: {name: array or shape} of a step's whole batch.
    """
    loss_of, key = _loss_of(emo, config)
    with traced_for("cpu"):
        return gradient_flops(loss_of, state.trained, state.frozen, batch, key)


def computed_flops(emo, config, state, batch):
    """FLOPs that a step computes: those of `step_flops`, and what it computes anew for want of memory (remat)."""
    loss_of, key = _loss_of(emo, config)
    with traced_for("cpu"):
        return count_flops(jax.grad(loss_of), state.trained, state.frozen, batch, key)


def step_activations(emo, config, state, batch):
    """Bytes that one clip (or frame) keeps from the forward for the backward pass. Arguments as those of step_flops.

    What a batch of two keeps, less what one does: the weights' own are in both.
    """
    loss_of, key = _loss_of(emo, config)

    def kept(size):
        some = {name: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype) for name, a in batch.items()}
        return kept_bytes(loss_of, state.trained, state.frozen, some, key)

    return kept(2) - kept(1)


def kept_bytes(function, *arguments):
    """Bytes that a function keeps for its gradient with respect to the first argument, those of arguments included."""

    def backward(first, *rest):
        return jax.vjp(lambda first: function(first, *rest), first)[1]

    kept = jax.tree.leaves(jax.eval_shape(backward, *arguments))
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in kept)


def _loss_of(emo, config):
    """(loss(trained, frozen, batch, key), shape of a key) of the config's stage."""
    loss = make_flat_loss(emo, config)
    return lambda *given: loss(*given)[0], jax.eval_shape(lambda: jax.random.key(0))


def gradient_flops(function, *arguments):
    """FLOPs of a function's value and its gradient with respect to the first argument.

    Counted in forward mode, which has the products of the backward pass, each transposed, and recomputes nothing.
    """
    first, *rest = arguments

    def forward(first, change, *rest):
        return jax.jvp(lambda first: function(first, *rest), (first,), (change,))

    return count_flops(forward, first, first, *rest)


def count_flops(function, *arguments):
    """FLOPs of a function of arrays or of their shapes, two for each multiplication of a product or convolution."""
    return jaxpr_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def jaxpr_flops(jaxpr):
    """The same of a function that is traced already."""
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation):
    """FLOPs of one equation; of a conditional, those of its longest branch, of a loop without an end, one round's."""
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * equation.outvars[0].aval.size * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
    if name == "conv_general_dilated":
        return _convolution(equation)
    inner = [jaxpr_flops(jaxpr) for jaxpr in jaxprs_in_params(params)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _convolution(equation):
    """Zeros that are put between the inputs of a transposed convolution do not count; those around them do."""
    kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
    taps = math.prod(kernel[i] for i in numbers[1:])  # of one output: input channels, then places
    return 2 * equation.outvars[0].aval.size * taps // math.prod(equation.params["lhs_dilation"])
