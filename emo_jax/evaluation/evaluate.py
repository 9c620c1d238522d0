"""One evaluation: generates videos of held-out people with held-out voices, for the measures in `properties`.

All measures are taken from the frames alone, by a small network that was trained on rendered frames (`probe`). Lips,
identity, seams and place each have a control: a generation without the part of EMO that is responsible for the
property, which must fail. The column "renders" gives the same measure on rendered videos, which is the score of a
perfect model.
"""

from __future__ import annotations

import math

import numpy as np

from emo_jax.evaluation.properties import (
    LONG_PEOPLE,
    MOVED_SECONDS,
    SHIFTS,
)
from emo_jax.progress import Progress

PROPERTIES = ("lips", "silence", "identity", "seams", "speed", "place", "length", "memory")
STRANGERS = 64
"""Number of further people among whom a face must be recognised."""


class Evaluation:
    """Networks, people and compiled samplers of one evaluation.

    Args:
        config: config of the weights, with the `sampling` fields to use.
        params: params tree of the weights.
        people: the people to animate, from `heldout.choose_people`.
        probe: the measuring network's params, from `probe.load_probe`.
        seed: seed of the noise.
        long: length of the long videos in seconds; 0 skips them.
        wanted: the properties to measure, a subset of PROPERTIES.
    """

    def __init__(self, config, params, people, probe, *, seed: int = 0, long: float = 60, wanted=PROPERTIES):
        from emo_jax.models.emo import build

        self.config, self.params, self.people, self.probe = config, params, people, probe
        self.seed, self.long, self.wanted = seed, long, set(wanted)
        self.emo, self.samplers = build(config), {}
        self.clip = config.clip
        self.segment = config.sampling.clips * config.clip.frames
        self.progress = Progress(self._segments(), "evaluate", "segment", every=10)

    def _segments(self) -> int:
        """Returns the number of segments to generate, for the progress bar; segments of fewer people count less."""
        wanted, talk = self.wanted, math.ceil(self.people.openings.shape[1] / self.segment)
        runs = bool(wanted & {"lips", "silence", "identity", "seams"}) + len(wanted & {"lips", "identity", "seams"})
        moved = math.ceil(MOVED_SECONDS * self.clip.fps / self.segment)
        total = talk * runs + moved * (3 * ("speed" in wanted) + 2 * len(SHIFTS) * ("place" in wanted))
        people = len(self.people.references)
        share = min(LONG_PEOPLE, people) / people
        return math.ceil(total + share * self.long * self.clip.fps / self.segment * ("length" in wanted))

    def generate(self, what: str, *, off=(), voices=None, masks=None, speed=None, people: int | None = None):
        """Returns videos of the people, uint8 (P, N, H, W, 3).

        Args:
            what: label for the progress bar.
            off: parts of EMO to switch off, see `VideoSampler`.
            voices: float32 (P, samples) at 16 kHz in place of the people's voices.
            masks: uint8 (P, H, W, 1) in place of the people's face masks.
            speed: head rotation speed in degrees per frame in place of the config's.
            people: generate only the first so many people.
        """
        options = dict(off=off, voices=voices, masks=masks, speed=speed, people=people)
        return np.concatenate(list(self.stream(what, **options)), 1)

    def stream(self, what: str, *, off=(), voices=None, masks=None, speed=None, people: int | None = None):
        """Yields the videos of `generate` segment by segment.

        All runs with the same parts switched off share one sampler, and so one compiled program.
        """
        import jax

        from emo_jax.generation.sampler import VideoSampler

        if off not in self.samplers:
            self.samplers[off] = VideoSampler(self.emo, self.params, self.config.sampling, off=off)
        masks = self.people.masks() if masks is None else masks
        voices = self.people.voices if voices is None else voices
        arrays = [a[:people] for a in (self.people.references, masks, voices)]
        for frames in self.samplers[off].stream(*arrays, speed=speed, key=jax.random.key(self.seed)):
            yield frames
            self.progress.add(len(frames) / len(self.people.references), what)

    def measure(self, frames) -> dict:
        """Returns `probe.measure` of frames uint8 (..., H, W, 3) of any size."""
        import cv2

        from emo_jax.evaluation import probe

        if frames.shape[-3:-1] != (probe.SIZE, probe.SIZE):
            flat = frames.reshape(-1, *frames.shape[-3:])
            small = [cv2.resize(f, (probe.SIZE, probe.SIZE), interpolation=cv2.INTER_AREA) for f in flat]
            frames = np.stack(small).reshape(*frames.shape[:-3], probe.SIZE, probe.SIZE, 3)
        return probe.measure(self.probe, frames)

    def short(self, seconds: float) -> np.ndarray:
        """Returns the voices cut to `seconds`, repeated where they are shorter, float32 (P, samples)."""
        from emo_jax.media.timing import SAMPLE_RATE

        wanted = round(seconds * SAMPLE_RATE)
        return np.tile(self.people.voices, (1, math.ceil(wanted / self.people.voices.shape[1])))[:, :wanted]
