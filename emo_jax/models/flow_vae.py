"""A VAE whose latents say how a reference image moves (latent flow diffusion, Ni et al. 2023, arXiv 2303.13744).

A frame is the reference image, warped by a flow field, with new paint inside an opening mouth. Its latents describe the
flow and the shape of the opening. They are similar for all people, and the reference image keeps its detail, so that a
small network learns to move faces which it has never seen.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from emo_jax.arrays import AnyArray
from emo_jax.models.cosine import flow_basis, inverse_flow_basis, mouth_basis
from emo_jax.models.initializers import ZEROS
from emo_jax.models.layers import Dense, LayerNorm, conv, fold, unfold
from emo_jax.models.mouth import Opening, draw_inside, find_opening, inside
from emo_jax.ops.warp import warp

Frames = Float[AnyArray, "batch frames height width 3"]
Reference = Float[AnyArray, "batch height width 3"]
Maps = Float[AnyArray, "batch frames rows columns features"]
Field = Float[AnyArray, "batch frames field_height field_width 3"]
"""Of each cell: where it comes from (right, down) in pixels, and the share of it that is a new inside of a mouth."""
Windows = Int[AnyArray, "batch windows 2"]
"""First (row, column) of a square of WINDOW x WINDOW cells."""

WINDOW = 18
"""Side, in cells, of the squares on which the painter is trained: 72 pixels for the small model, as wide as a mouth."""
_MOUTH = 4.0
"""Scale of the latents of mouths, which are rare: their squares then count as much as those of the flow."""
_BINOMIAL = (0.25, 0.5, 0.25)
"""Weights of the smoothing of fields, which the cosine transforms of neighbouring squares do not continue."""


class Decoded(NamedTuple):
    """What latents of flow and a reference image say.

    Attributes:
        field: where each cell comes from, and where a mouth has opened.
        warped: the warped reference; of the windows alone, if there are windows.
        frames: the warped reference with paint; of the windows alone, if there are windows.
    """

    field: Field
    warped: Frames
    frames: Frames


def encode_field(config: Any, field: Field) -> Maps:
    """Returns the unscaled latents of frames, cosine transforms of their fields (`data.motion_fields`).

    The transforms are fixed. A network that had to see motion in pixels left the flow at zero for 300 steps, and one
    that was given the flow lost four fifths of it after 850; 16 numbers per square of 8 x 8 cells lose 7 %.
    """
    field, cells = field.astype(jnp.float32), config.flow_cells
    flow = fold(field[..., :2], cells) @ flow_basis(cells, config.flow_channels)
    mouth = _MOUTH * fold(field[..., 2:], cells) @ mouth_basis(cells, config.mouth_channels)
    return jnp.concatenate([flow, mouth], axis=-1)


def decode_field(config: Any, latents: Maps) -> Field:
    """Returns the field that unscaled latents of `encode_field` describe, without its higher frequencies."""
    cells, split = config.flow_cells, config.flow_channels
    flow = unfold(latents[..., :split] @ inverse_flow_basis(cells, split), cells)
    mouth = unfold(latents[..., split:] / _MOUTH @ mouth_basis(cells, config.mouth_channels).T, cells)
    return _smooth(jnp.concatenate([flow, mouth], axis=-1))


class FlowDecoder(nn.Module):
    """Decodes latents of frames and the reference image to frames.

    Attributes:
        config: sizes (`VAEConfig`).
    """

    config: Any

    @nn.compact
    def __call__(self, latents: Maps, reference: Reference, windows: Windows | None = None) -> Decoded:
        """Returns the frames with values of about [-1, 1], and their parts.

        Args:
            latents: unscaled latents of the frames.
            reference: the image that moves, in [-1, 1].
            windows: where to paint; None for everywhere.
        """
        cell, field = self.config.flow_cell, decode_field(self.config, latents)
        large = _enlarge(field, cell)
        warped, share = warp(reference.astype(jnp.float32), large[..., :2]), large[..., 2:]
        opening = find_opening(share, cell)
        drawn, edges = draw_inside(opening, share, warped), inside(opening, share)
        seen = jnp.concatenate([_with_derivatives(field), fold(_places(opening), cell)], axis=-1)
        if windows is not None:
            seen = cut_windows(seen, windows, 1)
            warped, drawn, edges = (cut_windows(a, windows, cell) for a in (warped, drawn, edges))
        change = Painter(self.config, name="painter")(seen, warped)
        mask, paint = nn.sigmoid(edges + change[..., :1]), drawn + change[..., 1:]
        return Decoded(field, warped, warped + mask * (paint - warped))


class Painter(nn.Module):
    """Corrects what `mouth.draw_inside` draws where the warped reference image does not show the inside of a mouth.

    It normalises each position by itself, so that the same network paints a window and a complete frame.

    Attributes:
        config: sizes (`VAEConfig`).
    """

    config: Any

    @nn.compact
    def __call__(self, seen: Maps, warped: Frames) -> Float[Array, "batch frames height width 4"]:
        """Predicts corrections of the logit of the mask and of the paint. Before training, all corrections are zero.

        Args:
            seen: features of each cell: its motion, and the distances of its pixels to the edges of the opening.
            warped: the warped reference.
        """
        c, width = self.config, self.config.decoder_channels[0]
        embed = functools.partial(Dense, width, dtype=c.dtype)
        x = embed(name="warped_in")(fold(warped.astype(c.dtype), c.flow_cell))
        x = x + embed(name="seen_in")(seen.astype(c.dtype))
        for i in range(c.layers):
            h = nn.silu(LayerNorm(dtype=c.dtype, name=f"norm1_{i}")(x))
            h = conv(width, dtype=c.dtype, name=f"conv1_{i}")(h)
            h = nn.silu(LayerNorm(dtype=c.dtype, name=f"norm2_{i}")(h))
            x = x + conv(width, dtype=c.dtype, name=f"conv2_{i}")(h)
        x = nn.silu(LayerNorm(dtype=c.dtype, name="norm_out")(x))
        out = conv(4 * c.flow_cell**2, dtype=jnp.float32, kernel_init=ZEROS, name="conv_out")(x)
        return jnp.asarray(unfold(out, c.flow_cell))


def cut_windows(a: AnyArray, windows: Windows, size: int) -> Array:
    """Cuts squares of WINDOW cells from maps.

    Args:
        a: maps (batch, frames, rows, columns, features) of `size` x `size` positions per cell.
        windows: the first cell of each square; there may be several of each frame, one frame after the other.
        size: positions of a cell along each axis.
    """
    a = jnp.repeat(jnp.asarray(a), windows.shape[1] // a.shape[1], axis=1)
    height, width = (min(WINDOW * size, side) for side in a.shape[-3:-1])

    def cut(a: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice(a, (start[0] * size, start[1] * size, 0), (height, width, a.shape[-1]))

    return jax.vmap(jax.vmap(cut))(a, jnp.asarray(windows))


def _with_derivatives(field: Field) -> Float[Array, "batch frames field_height field_width 7"]:
    """Returns the field with the flow's derivatives along both axes."""
    flow = field[..., :2]
    down, right = (jnp.asarray(jnp.gradient(flow, axis=axis)) for axis in (-3, -2))
    return jnp.concatenate([flow / 4, _MOUTH * field[..., 2:], down, right], axis=-1)


def _places(opening: Opening) -> Float[Array, "batch frames height width 3"]:
    """Returns the place of each pixel in an opening, as numbers of about 1 for the painter."""
    edges = (jnp.clip(a, -2, 4) / 2 for a in (opening.above, opening.below))
    return jnp.where(opening.height > 0, jnp.concatenate([*edges, opening.height / 4], axis=-1), 0)


def _smooth(field: Field) -> Field:
    """Averages each cell with its neighbours along both axes."""
    for axis in (2, 3):
        size = field.shape[axis]
        padded = jnp.pad(field, [(int(i == axis),) * 2 for i in range(field.ndim)], mode="edge")
        parts = (jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3))
        field = sum((weight * part for weight, part in zip(_BINOMIAL, parts, strict=True)), jnp.zeros(()))
    return field


def _enlarge(x: AnyArray, times: int) -> Array:
    """Enlarges maps by bilinear interpolation."""
    height, width = x.shape[-3:-1]
    return jax.image.resize(x, (*x.shape[:-3], times * height, times * width, x.shape[-1]), "bilinear")
