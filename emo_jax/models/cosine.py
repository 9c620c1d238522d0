"""Cosine transforms of squares of pixels, from which the VAE's linear maps start."""

import math

import numpy as np
from jaxtyping import Float

from emo_jax.models.initializers import Computed

_CORRELATION = 0.97
"""Correlation of neighbouring pixels in the model of pictures. Values of 0.9 to 0.99 decode portraits within 0.1 dB."""

_NOISE = 1e-4
"""Variance of the noise on latents relative to their mean variance. It bounds the weights of `smooth_decoder`."""


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


def smooth_decoder(factor: int, channels: int) -> Float[np.ndarray, "3 3 {channels} 3*{factor}*{factor}"]:
    """Computes a convolution that maps latents of `scaled_cosine_basis` to pixels, from 3x3 latents to a square.

    It is the linear estimate of least mean squared error (Wiener) for pictures whose pixels are correlated by
    0.97 ** distance along each axis, which is how JPEG's transform is usually analysed (Ahmed et al. 1974). Compared
    with the inverse transform of each square alone, edges between squares are smooth.
    """
    cosines = np.kron(np.eye(3), _cosines(factor))
    pixels = np.arange(3 * factor)
    correlation = _CORRELATION ** np.abs(pixels[:, None] - pixels)
    among = (cosines.T @ correlation @ cosines).reshape(3, factor, 3, factor)
    middle = (correlation[factor : 2 * factor] @ cosines).reshape(factor, 3, factor)
    kernel = np.zeros((3, 3, channels, factor, factor, 3))
    waves = np.array(_waves(factor, channels))
    for colour, axis in enumerate(_colours()):  # Colour axes are taken as uncorrelated.
        (members,) = np.nonzero(waves[:, 0] == colour)
        u, v = waves[members, 1:].T
        size = 9 * len(members)
        of_latents = np.einsum("ikam,jkbm->ijkabm", among[:, u][..., u], among[:, v][..., v]).reshape(size, size)
        of_pixels = np.einsum("yik,xjk->yxijk", middle[..., u], middle[..., v]).reshape(factor**2, size)
        of_latents += _NOISE * of_latents.diagonal().mean() * np.eye(size)
        weights = np.linalg.solve(of_latents, of_pixels.T).reshape(3, 3, -1, factor, factor, 1)
        kernel[:, :, members] = weights * axis
    scales = _scales(factor, channels)[:, None] / np.sqrt(factor)
    return (kernel.reshape(3, 3, channels, -1) / scales).astype(np.float32)


def _cosine_transform(shape: tuple[int, ...]) -> np.ndarray:
    return cosine_basis(math.isqrt(shape[0] // 3), shape[1])


def _inverse_cosine_transform(shape: tuple[int, ...]) -> np.ndarray:
    factor = math.isqrt(shape[1] // 3)
    return cosine_basis(factor, shape[0]).T * factor


def _smooth_decoder(shape: tuple[int, ...]) -> np.ndarray:
    return smooth_decoder(math.isqrt(shape[3] // 3), shape[2])


COSINE_TRANSFORM = Computed(_cosine_transform)
INVERSE_COSINE_TRANSFORM = Computed(_inverse_cosine_transform)
SMOOTH_DECODER = Computed(_smooth_decoder)
