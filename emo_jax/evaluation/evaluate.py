"""`emo evaluate`: generates videos of held-out people with held-out voices, and measures them.

emo evaluate --checkpoint tiny --output out/evaluation

All measures are taken from the frames alone, by a small network that was trained on rendered frames (metrics/probe.py).
Lips, identity, seams and place have a control, a generation without the part that should bring it about, which must
fail. The column "renders" tells what the same measure gives for rendered videos: what a perfect model would score.
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
STRANGERS = 64  # more people to tell a face apart from


class Evaluation:
    """One evaluation: networks, people, and the videos made so far.

    Args:
        config: of the weights, with `sampling` as it is to be used. params: their params tree.
        people: metrics.heldout.People. probe: of metrics.probe.load_probe. seed: of the noise.
        long: seconds of the long videos; 0 for none. wanted: some of PROPERTIES.
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
        """Segments of all people to be generated, for the progress: those of a few people count less."""
        wanted, talk = self.wanted, math.ceil(self.people.openings.shape[1] / self.segment)
        runs = bool(wanted & {"lips", "silence", "identity", "seams"}) + len(wanted & {"lips", "identity", "seams"})
        moved = math.ceil(MOVED_SECONDS * self.clip.fps / self.segment)
        total = talk * runs + moved * (3 * ("speed" in wanted) + 2 * len(SHIFTS) * ("place" in wanted))
        people = len(self.people.references)
        share = min(LONG_PEOPLE, people) / people
        return math.ceil(total + share * self.long * self.clip.fps / self.segment * ("length" in wanted))

    def generate(self, what: str, *, off=(), voices=None, masks=None, speed=None, people: int | None = None):
        """Videos uint8 (P, N, H, W, 3) of the (first) people; voices and masks default to theirs."""
        options = dict(off=off, voices=voices, masks=masks, speed=speed, people=people)
        return np.concatenate(list(self.stream(what, **options)), 1)

    def stream(self, what: str, *, off=(), voices=None, masks=None, speed=None, people: int | None = None):
        """The same, segment by segment. One sampler serves all runs with the same parts off, one program all of P."""
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
        """`metrics.probe.measure` of frames of any size."""
        import cv2

        from emo_jax.evaluation import probe

        if frames.shape[-3:-1] != (probe.SIZE, probe.SIZE):
            flat = frames.reshape(-1, *frames.shape[-3:])
            small = [cv2.resize(f, (probe.SIZE, probe.SIZE), interpolation=cv2.INTER_AREA) for f in flat]
            frames = np.stack(small).reshape(*frames.shape[:-3], probe.SIZE, probe.SIZE, 3)
        return probe.measure(self.probe, frames)

    def short(self, seconds: float) -> np.ndarray:
        """The voices, cut to so many seconds (repeated where they are shorter)."""
        from emo_jax.media.timing import SAMPLE_RATE

        wanted = round(seconds * SAMPLE_RATE)
        return np.tile(self.people.voices, (1, math.ceil(wanted / self.people.voices.shape[1])))[:, :wanted]
