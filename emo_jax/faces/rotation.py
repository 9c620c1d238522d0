"""Head rotation: angles, matrices and rotation speed.

Coordinates: x to the right of the image, y down, z towards the viewer. Angles are in degrees: yaw > 0 turns the face to
the image's right, pitch > 0 nods it down, roll > 0 leans it clockwise.
"""

from __future__ import annotations

import numpy as np


def rotation_matrices(angles: np.ndarray) -> np.ndarray:
    """Converts (..., 3) yaw, pitch and roll in degrees to (..., 3, 3) matrices: roll after yaw after pitch."""
    yaw, pitch, roll = np.moveaxis(np.deg2rad(np.asarray(angles, np.float64)), -1, 0)
    (cy, sy), (cp, sp), (cr, sr) = ((np.cos(a), np.sin(a)) for a in (yaw, pitch, roll))
    zero, one = np.zeros_like(cy), np.ones_like(cy)
    about_y = np.stack([cy, zero, sy, zero, one, zero, -sy, zero, cy], -1).reshape(*cy.shape, 3, 3)
    about_x = np.stack([one, zero, zero, zero, cp, sp, zero, -sp, cp], -1).reshape(*cy.shape, 3, 3)
    about_z = np.stack([cr, -sr, zero, sr, cr, zero, zero, zero, one], -1).reshape(*cy.shape, 3, 3)
    return about_z @ about_y @ about_x


def rotation_speed(angles: np.ndarray, smooth: int = 7) -> np.ndarray:
    """Computes the head rotation speed w^f of the EMO paper (section 3.2).

    The speed of a frame is the geodesic angle to the frame before it; the first frame takes the second's. It is then
    averaged over `smooth` frames, with the ends repeated.

    Args:
        angles: (N, 3) yaw, pitch and roll in degrees.
        smooth: width of the moving average in frames.

    Returns:
        float32 (N,) in degrees per frame.
    """
    if len(angles) < 2:
        return np.zeros(len(angles), np.float32)
    matrices = rotation_matrices(angles)
    # The Frobenius distance, because the arc cosine of the trace loses small angles.
    chord = np.linalg.norm(matrices[1:] - matrices[:-1], axis=(1, 2)) / np.sqrt(8)
    angle = np.rad2deg(2 * np.arcsin(np.clip(chord, 0, 1)))
    padded = np.pad(np.concatenate([angle[:1], angle]), (smooth // 2, smooth - 1 - smooth // 2), mode="edge")
    return np.convolve(padded, np.full(smooth, 1 / smooth), mode="valid").astype(np.float32)
