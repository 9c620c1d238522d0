"""Cosine transforms of squares of pixels, from which the VAE's linear maps start."""

import math

import numpy as np
from jaxtyping import Float

from emo_jax.models.initializers import Computed


def _waves(factor: int, channels: int) -> list[tuple[int, int, int]]:
    """Returns (colour axis, vertical, horizontal frequency) of each channel, lowest first.

    Chroma gets a quarter of luma's share, as in JPEG.
    """
    waves = sorted(
        ((u * u + v * v) * (1 if colour == 0 else 4) + 3 * (colour > 0), colour, u, v)
        for colour in range(3)
        for u in range(factor)
        for v in range(factor)
    )
    return [wave[1:] for wave in waves[:channels]]


def _colours() -> np.ndarray:
    """Returns orthonormal colour axes (3, RGB): luma and two chroma."""
    return np.linalg.qr(np.array([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]]).T)[0].T


def _cosines(factor: int) -> np.ndarray:
    """Returns orthonormal cosines (factor pixels, factor frequencies)."""
    steps = (np.arange(factor) + 0.5) * np.pi / factor
    cosines = np.cos(np.arange(factor) * steps[:, None])
    return cosines / np.linalg.norm(cosines, axis=0)


def cosine_basis(factor: int, channels: int) -> Float[np.ndarray, "3*{factor}*{factor} {channels}"]:
    """Computes an orthogonal transform of RGB squares of factor x factor pixels to `channels` numbers.

    Its columns are products of a colour axis (luma, two chroma) and a two-dimensional cosine, lowest frequencies first.
    Their norm is 1 / sqrt(factor).
    """
    cosines, colours = _cosines(factor), _colours()
    basis = [
        cosines[:, u][:, None, None] * cosines[:, v][:, None] * colours[colour]
        for colour, u, v in _waves(factor, channels)
    ]
    return (np.stack([b.ravel() for b in basis], axis=1) / np.sqrt(factor)).astype(np.float32)


def scaled_cosine_basis(factor: int, channels: int) -> Float[np.ndarray, "3*{factor}*{factor} {channels}"]:
    """Computes an orthogonal transform of RGB squares of factor x factor pixels to latents of about unit variance.

    It is `cosine_basis`, with each column divided by the square root of its standard deviation in pictures of people.
    Without, the mean colour of a square would have 50 times the standard deviation of its detail, and the denoising
    loss would hardly see faces; divided by the standard deviation itself, it would mostly see noise.
    """
    return (cosine_basis(factor, channels) * _scales(factor, channels)).astype(np.float32)


def _scales(factor: int, channels: int) -> np.ndarray:
    colour, u, v = np.array(_waves(factor, channels)).T
    # Measured on rendered people and photographs at factor 16: a power law in the frequency, smaller for chroma.
    deviation = np.where(u + v == 0, 12.0, 2.5 / np.maximum(np.hypot(u, v), 1)) * np.array([1, 0.28, 0.13])[colour]
    return np.sqrt(factor / deviation)  # the factor undoes the norm of `cosine_basis`


def flow_basis(cells: int, channels: int) -> Float[np.ndarray, "2*{cells}*{cells} {channels}"]:
    """Computes an orthogonal transform of squares of cells x cells of optical flow to numbers of about unit variance.

    Its columns are products of an axis (right, down) and a two-dimensional cosine, lowest frequencies first, the two
    axes in turn. Their norm is the inverse of the standard deviation of that cosine in the flow of rendered people,
    to the power of 3/4: with less, the few numbers that move lips would drown in those that move the head.

    Args:
        cells: side of a square in cells of flow.
        channels: an even number.
    """
    cosines = _cosines(cells)
    waves = sorted((u * u + v * v, u, v) for u in range(cells) for v in range(cells))[: channels // 2]
    basis = np.zeros((cells, cells, 2, channels))
    for number, (square, u, v) in enumerate(waves):
        deviation = 13.0 if square == 0 else 2.9 * square**-0.85  # in pixels, measured on 389 people
        for axis in range(2):
            basis[:, :, axis, 2 * number + axis] = np.outer(cosines[:, u], cosines[:, v]) * deviation**-0.75
    return basis.reshape(-1, channels).astype(np.float32)


def inverse_flow_basis(cells: int, channels: int) -> Float[np.ndarray, "{channels} 2*{cells}*{cells}"]:
    """Computes the inverse of `flow_basis`, which gives the flow without its higher frequencies."""
    basis = flow_basis(cells, channels)
    return basis.T / (basis**2).sum(0)[:, None]


def mouth_basis(cells: int, channels: int) -> Float[np.ndarray, "{cells}*{cells} {channels}"]:
    """Computes orthonormal two-dimensional cosines of squares of cells x cells, for the shapes of open mouths.

    Mouths are wide: vertical frequencies come earlier than horizontal ones.
    """
    cosines = _cosines(cells)
    waves = sorted((v * v + 2 * u * u, v, u) for v in range(cells) for u in range(cells))[:channels]
    return np.stack([np.outer(cosines[:, v], cosines[:, u]).ravel() for _, v, u in waves], axis=1).astype(np.float32)


def _cosine_transform(shape: tuple[int, ...]) -> np.ndarray:
    return cosine_basis(math.isqrt(shape[0] // 3), shape[1])


def _inverse_cosine_transform(shape: tuple[int, ...]) -> np.ndarray:
    factor = math.isqrt(shape[1] // 3)
    return cosine_basis(factor, shape[0]).T * factor


COSINE_TRANSFORM = Computed(_cosine_transform)
INVERSE_COSINE_TRANSFORM = Computed(_inverse_cosine_transform)
