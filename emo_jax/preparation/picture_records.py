"""From single pictures to records of one frame, for the training stages that use single frames."""

from __future__ import annotations

import pathlib

import numpy as np

from emo_jax.data.record import Record
from emo_jax.faces.analyzer import FaceAnalyzer, analyzer_flags
from emo_jax.media.images import load_image
from emo_jax.media.mp4 import encode_video
from emo_jax.preparation.shots import (
    Meter,
    Rules,
    crop_window,
    fit_window,
    rejection_reasons,
    window_flags,
    window_points,
)
from emo_jax.preparation.video_records import FPS, record_id


def picture_record(path: pathlib.Path, name: str, rules: Rules, analyzer: FaceAnalyzer, licence: str) -> Record:
    """Makes the record of a picture, cropped around its face like a video.

    The speed is 0 with confidence 0, and the frame rate has no meaning.

    Args:
        path: path of the file.
        name: name of the picture, from which the id is made.
        rules: requirements for a record.
        analyzer: the face analyzer.
        licence: licence of the picture.

    Returns:
        A record of one frame.

    Raises:
        ValueError: if the picture cannot be used; the message is the reason.
    """
    image = load_image(path)
    meter = Meter(analyzer)
    meter.add(image)
    measurements = meter.measurements()
    (reason,) = rejection_reasons(measurements, rules)
    if reason:
        raise ValueError(reason)
    height, width = image.shape[:2]
    window, shape = fit_window(measurements.box, height, width, rules.aspect), rules.frame_shape
    if window is None:
        raise ValueError("no crop window of the picture contains the face")
    boxes = window_points(measurements.box, window, shape)
    return Record(
        id=record_id(name),
        source=name,
        licence=licence,
        video=encode_video(crop_window(image, window, shape)[None], FPS),
        audio=np.zeros(0, np.int16),
        fps=float(FPS),
        boxes=np.clip(boxes, 0, shape[::-1] * 2).astype(np.float32),
        landmarks=window_points(measurements.landmarks, window, shape),
        rotation=measurements.rotation.astype(np.float32),
        speed=np.zeros(1, np.float32),
        speed_confidence=np.zeros(1, np.float32),
        analyzer=f"{analyzer.name}: {analyzer.measures}",
        flags=" ".join(["no-sound", *analyzer_flags(analyzer), *window_flags(window, rules)]),
    )
