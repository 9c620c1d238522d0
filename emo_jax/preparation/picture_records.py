"""From single pictures to records of one frame, which feed the stages that are fed single frames."""

from __future__ import annotations

import pathlib

import numpy as np

from emo_jax.data.records import Record
from emo_jax.faces.analyzer import FaceAnalyzer, analyzer_flags
from emo_jax.media.images import load_image
from emo_jax.media.mp4 import encode_video
from emo_jax.preparation.shots import Meter, Rules, cut_square, faults, square_window, window_flags
from emo_jax.preparation.video_records import FPS, record_id


def picture_record(path: pathlib.Path, name: str, rules: Rules, analyzer: FaceAnalyzer, licence: str) -> Record:
    """The record of the picture at `path`, its one usable face cut out as a video's would be.

    Its id depends on the name. The speed is 0 and cannot be trusted; the frame rate says nothing.

    Raises:
      ValueError: why the picture cannot be used.
    """
    image = load_image(path)
    meter = Meter(analyzer)
    meter.add(image)
    seen = meter.measurements()
    (reason,) = faults(seen, rules)
    if reason:
        raise ValueError(reason)
    window = square_window(seen.box, *image.shape[:2])
    if window is None:
        raise ValueError("no square of the picture holds the face")
    left, top, side = window
    boxes = (seen.box - (left, top, left, top)) * (rules.size / side)
    return Record(
        id=record_id(name),
        source=name,
        licence=licence,
        video=encode_video(cut_square(image, window, rules.size)[None], FPS),
        audio=np.zeros(0, np.int16),
        fps=float(FPS),
        boxes=np.clip(boxes, 0, rules.size).astype(np.float32),
        landmarks=(seen.landmarks - (left, top)) * (rules.size / side),
        rotation=seen.rotation.astype(np.float32),
        speed=np.zeros(1, np.float32),
        speed_confidence=np.zeros(1, np.float32),
        analyzer=f"{analyzer.name}: {analyzer.measures}",
        flags=" ".join(["no-sound", *analyzer_flags(analyzer), *window_flags(window, rules)]),
    )
