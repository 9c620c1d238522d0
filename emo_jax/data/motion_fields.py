"""How frames follow from a reference image: where each place comes from, and where a mouth has opened.

Optical flow compares pixels. It finds turning heads, but not opening mouths, whose insides the reference image does not
show: it stretches the lips over them. Landmarks know better, where a record has them.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from emo_jax.media.optical_flow import dense_flow

Image = UInt8[np.ndarray, "height width 3"]
Points = Float[np.ndarray, "18 2"]
"""Landmarks (x, y) in pixels, in the order of NAMES."""
Field = Float[np.ndarray, "rows columns 3"]
"""Of each cell: where it comes from in the reference image (right, down) in pixels, and the share of it that is the
inside of a mouth which the reference image does not show."""

NAMES = (
    *("upper_lip", "lower_lip", "upper_lip_edge", "lower_lip_edge", "left_corner", "right_corner"),
    *("nose_tip", "under_nose", "between_eyes", "chin"),
    *("left_eye_outer", "left_eye_inner", "right_eye_inner", "right_eye_outer"),
    *("left_lid_upper", "left_lid_lower", "right_lid_upper", "right_lid_lower"),
)
"""Landmarks of rendered people. Upper and lower lip touch when the mouth is closed; edges are where the lips end."""
_OF_MESH = (13, 14, 0, 17, 291, 61, 1, 2, 168, 152, 263, 362, 133, 33, 386, 374, 159, 145)
"""The same places in the mesh of 478 landmarks."""
_EYES = slice(10, 12), slice(12, 14)
_SMOOTHING = 0.02
"""Of the spline through the landmarks: lips that touch are two landmarks at one place that come from two."""
_FINER = 8
"""The mouth is drawn at this many times the resolution of the cells, and averaged."""


def named_points(landmarks: Float[np.ndarray, "n points 2"]) -> Float[np.ndarray, "n 18 2"] | None:
    """Returns the landmarks that have NAMES out of those of a record; None if it has none."""
    count = landmarks.shape[1] if len(landmarks) else 0
    if count == len(NAMES):
        return landmarks
    return landmarks[:, list(_OF_MESH)] if count > max(_OF_MESH) else None


def motion_field(frame: Image, reference: Image, cell: int, points: Points | None, known: Points | None) -> Field:
    """Estimates how a frame follows from a reference image.

    Args:
        frame: the frame.
        reference: the reference image, of the same size.
        cell: side in pixels of a cell of the field.
        points: landmarks of the frame; None: optical flow alone, without open mouths.
        known: landmarks of the reference image.
    """
    flow = optical_flow(frame, reference, cell)
    if points is None or known is None:
        return np.dstack((flow, np.zeros(flow.shape[:2], np.float32)))
    rows, columns = flow.shape[:2]
    centres = (np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1) + 0.5) * cell
    near = _near_mouth_and_eyes(centres, points)[..., None]
    flow += near * (_spline(points, known - points, centres) - flow)
    inside, shown = (open_mouth(p, (rows, columns), cell) for p in (points, known))
    source = ((centres + flow) / cell - 0.5).astype(np.float32)
    seen = cv2.remap(shown, source, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return np.dstack((flow, np.clip(inside - seen, 0, 1)))


def optical_flow(frame: Image, reference: Image, cell: int) -> Float[np.ndarray, "rows columns 2"]:
    """Averages `dense_flow` from a frame to a reference image over cells.

    Returns:
        Where each cell comes from in the reference image, (right, down) in pixels.
    """
    height, width = (side // cell for side in reference.shape[:2])
    return cv2.resize(dense_flow(frame, reference), (width, height), interpolation=cv2.INTER_AREA)


def open_mouth(points: Points, size: tuple[int, int], cell: int) -> Float[np.ndarray, "rows columns"]:
    """Returns the share of each cell that is between the lips: between two parabolas through the corners."""
    upper, lower, left, right = points[[0, 1, 4, 5]]
    along = np.linspace(-1, 1, 17)[:, None]
    middle, half = (left + right) / 2, (right - left) / 2
    bend = 1 - along**2
    top, bottom = (middle + along * half + bend * (lip - middle) for lip in (upper, lower))
    outline = np.concatenate([top, bottom[::-1]])
    canvas, scale = np.zeros([side * _FINER for side in size], np.uint8), _FINER / cell
    if (lower - upper)[1] > 0:
        cv2.fillPoly(canvas, [np.round(((outline + 0.5) * scale - 0.5) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return cv2.resize(canvas, size[::-1], interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _near_mouth_and_eyes(
    places: Float[np.ndarray, "rows columns 2"], points: Points
) -> Float[np.ndarray, "rows columns"]:
    """Returns 1 around mouth and eyes and 0 further away."""
    nose, chin, left, right = points[[7, 9, 4, 5]]
    share = _disc(places, (nose + chin) / 2, (0.8 * _distance(left, right), 0.62 * _distance(nose, chin)))
    for eye in _EYES:
        width = _distance(*points[eye])
        share = np.maximum(share, _disc(places, points[eye].mean(0), (0.75 * width, 0.6 * width)))
    return share


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return max(float(np.linalg.norm(one - other)), 1.0)


def _disc(places: np.ndarray, centre: np.ndarray, radius: tuple[float, float]) -> np.ndarray:
    distance = np.linalg.norm((places - centre) / np.array(radius), axis=-1)
    return np.clip(2.5 * (1 - distance), 0, 1)


def _spline(places: Points, values: Points, wanted: Float[np.ndarray, "rows columns 2"]) -> np.ndarray:
    """Interpolates values of landmarks by a thin plate spline."""
    count, scale = len(places), 32.0
    plane = np.c_[np.ones(count), places / scale]
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = _kernel(places[:, None] - places, scale) + _SMOOTHING * np.eye(count)
    system[:count, count:], system[count:, :count] = plane, plane.T
    weights = np.linalg.solve(system, np.r_[values, np.zeros((3, 2))])
    flat = wanted.reshape(-1, 2)
    found = _kernel(flat[:, None] - places, scale) @ weights[:count]
    found += np.c_[np.ones(len(flat)), flat / scale] @ weights[count:]
    return found.reshape(*wanted.shape[:2], 2).astype(np.float32)


def _kernel(offset: np.ndarray, scale: float) -> np.ndarray:
    squared = (offset**2).sum(-1) / scale**2
    return squared * np.log(squared + 1e-9)
