"""Dense optical flow between two images."""

import cv2
import numpy as np
from jaxtyping import Float, UInt8


def dense_flow(
    frame: UInt8[np.ndarray, "height width 3"], reference: UInt8[np.ndarray, "height width 3"]
) -> Float[np.ndarray, "height width 2"]:
    """Estimates where each pixel of a frame comes from (DIS, Kroeger et al. 2016, arXiv 1603.03590).

    Returns:
        Displacements (right, down) in pixels, from the frame to the reference.
    """
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # cannot be pickled, so it is not kept
    grays = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (frame, reference))
    return estimator.calc(*grays, None)  # pyright: ignore[reportCallIssue, reportArgumentType]
