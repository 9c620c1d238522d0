"""Compares a folder of videos with another, as sets: FID, FVD and E-FID (`emo evaluate --videos DIR --against DIR`)."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from emo_jax.evaluation import i3d, inception
from emo_jax.evaluation.frechet import frechet_distance
from emo_jax.evaluation.layers import fill_batch
from emo_jax.faces.landmarks import LandmarkTracker, load_networks
from emo_jax.media.video import read_video
from emo_jax.progress import Progress
from emo_jax.weights.files import name_file, read_tensors

FPS = 25
EVERY = 5
"""Frames between two frames of FID and E-FID."""
BATCH = 8
SOURCES = {
    "fid": "Inception's 2048 features of every 5th frame, pytorch-fid's weights and formula (Heusel et al. 2017)",
    "fvd": "I3D's 400 logits of clips of 16 frames, VideoGPT's weights (Unterthiner et al. 2018)",
    "e_fid": "52 blendshapes of every 5th frame; papers use expression coefficients of a 3DMM, so not comparable",
}
"""Features behind each distance."""
REASONS = {"fid": "needs --inception FILE", "fvd": "needs --i3d FILE", "e_fid": "fewer than 2 frames with a face"}


@dataclasses.dataclass(frozen=True)
class Distance:
    """The distance between two sets of videos.

    Attributes:
        value: Frechet distance; None if it cannot be computed.
        samples: number of frames or clips in each set.
        source: the features.
        reason: why there is no value; "" otherwise.
    """

    value: float | None
    samples: tuple[int, int]
    source: str
    reason: str


class SetMeter:
    """Computes the features of sets of videos.

    Args:
        inception_file: weights of pytorch-fid; None: no FID.
        i3d_file: weights of VideoGPT's I3D; None: no FVD.

    Raises:
        ValueError: a file is missing, damaged or of another network.
    """

    def __init__(self, inception_file: str | None = None, i3d_file: str | None = None):
        self._images = _network(inception_file, inception.convert, inception.features)
        self._clips = _network(i3d_file, i3d.convert, i3d.logits)

    def features(self, paths: Sequence[pathlib.Path], name: str) -> dict[str, np.ndarray]:
        """Returns {measure of SOURCES: features (samples, D)} of the videos that can be read.

        Args:
            paths: the videos.
            name: of the set, for the progress.

        Raises:
            ValueError: no video can be read.
        """
        found: dict[str, list[np.ndarray]] = {measure: [] for measure in SOURCES}
        read, reason = 0, ""
        with Progress(len(paths), name, "video") as progress:
            for path in paths:
                try:
                    for measure, rows in self._of_video(path).items():
                        found[measure] += rows
                    read += 1
                except ValueError as error:
                    reason = " ".join(str(error).split())
                    progress.say(f"{path.name} is left out of {name}: {reason}")
                progress.add()
        if not read:
            raise ValueError(f"none of {len(paths)} videos of {name} can be read; {paths[0].name}: {reason}")
        return {measure: np.array(rows) for measure, rows in found.items()}

    def _of_video(self, path: pathlib.Path) -> dict[str, list[np.ndarray]]:
        tracker, networks = LandmarkTracker(), load_networks(None)
        rows: dict[str, list[np.ndarray]] = {measure: [] for measure in SOURCES}
        images: list[np.ndarray] = []
        clip: list[np.ndarray] = []
        for index, (image, _) in enumerate(read_video(path, FPS)):
            if index % EVERY == 0:
                faces = tracker.detect(image)
                if faces and faces[0].landmarks is not None:
                    rows["e_fid"].append(networks.blendshapes(faces[0].landmarks))
                if self._images:
                    images.append(inception.prepare(image))
            if len(images) == BATCH:
                rows["fid"] += _run(self._images, images)
                images = []
            if self._clips:
                clip.append(image)
                if len(clip) == i3d.FRAMES:
                    rows["fvd"] += list(np.asarray(self._clips(i3d.prepare(clip)[None])))
                    clip = []
        if images:
            rows["fid"] += _run(self._images, images)
        return rows


def compare_sets(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> dict[str, Distance]:
    """Returns the distances between the features of two sets of videos."""
    distances = {}
    for measure, source in SOURCES.items():
        one, two = first[measure], second[measure]
        samples = len(one), len(two)
        value = frechet_distance(one, two) if min(samples) > 1 else None
        missing = "fewer than 2 samples in a set" if max(samples) else REASONS[measure]
        distances[measure] = Distance(value, samples, source, "" if value is not None else missing)
    return distances


def _network(file: str | None, convert: Callable, forward: Callable) -> Callable | None:
    if file is None:
        return None
    with name_file(file):
        params = convert(read_tensors(file))
    return functools.partial(jax.jit(forward), jax.device_put(params))


def _run(network: Callable | None, images: list[np.ndarray]) -> list[np.ndarray]:
    """Runs a network on at most BATCH images."""
    assert network is not None
    return list(np.asarray(network(fill_batch(np.stack(images), BATCH)))[: len(images)])
