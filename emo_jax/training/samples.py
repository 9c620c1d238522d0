"""Sample videos while training: people of the data set speak with their own voices."""

import functools
import pathlib
import sys
import tempfile

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from emo_jax.data import pipeline, transforms
from emo_jax.data.latents import LatentSource
from emo_jax.distributed import processes
from emo_jax.files import whole
from emo_jax.generation.sampler import VideoSampler
from emo_jax.media import mp4
from emo_jax.media.video_writer import VideoWriter
from emo_jax.training.step import at_rest
from emo_jax.weights.runs import folder_of

_PEOPLE, _SECONDS = 2, 2.0


class Samples:
    """Writes workdir/samples/STEP.mp4 (each person beside the reference) and hands a strip of frames to TensorBoard."""

    def __init__(self, config, emo, workdir, writer):
        self._config, self._emo, self._writer = config, emo, writer
        self._directory = folder_of(workdir) / "samples"

    def write(self, step, params):
        """Samples with `params` {path: array} and writes; the VAE's stage shows reconstructions alone.

        All processes call it, as the parameters are spread over them; the first samples, on one device, and writes,
        while the others wait. What goes wrong is told, and training goes on.
        """
        params = processes.fetch(params)
        if processes.first():
            try:
                self._write(step, self._at_hand(params))
            # A full disk or device, or latents that are not finite.
            except (OSError, ValueError, FloatingPointError, jax.errors.JaxRuntimeError) as error:
                told = " ".join(str(error).split())[:300]
                print(f"warning: no samples of step {step}: {told}", file=sys.stderr, flush=True)
        processes.wait(f"samples of step {step}")

    def _at_hand(self, params):
        """The params tree on one device, in the precision that it is computed in."""
        device, dtype = jax.local_devices()[0], self._config.model.dtype
        return unflatten_dict({p: jax.device_put(at_rest(p, a, dtype), device) for p, a in params.items()}, sep="/")

    def _write(self, step, params):
        references, masks, audio = self._people
        if references.dtype != np.uint8:
            references = np.asarray(self._decode(params, references))
        if self._config.train.stage == "vae":
            images = np.asarray(self._reconstruct(params, references))
            self._writer.image("reconstructions", _beside(references, images), step)
            return
        self._sampler.params = params
        parts = self._sampler.stream(references, masks, audio, key=jax.random.key(0))
        frames = np.concatenate(list(parts), axis=1)
        self._directory.mkdir(parents=True, exist_ok=True)
        for person, (reference, video, sound) in enumerate(zip(references, frames, audio, strict=True)):
            self._save(f"{step:07d}_{person}.mp4", video, sound)
            strip = np.concatenate([reference, *video[:: max(1, len(video) // 8)]], axis=1)
            self._writer.image(f"sample_{person}", strip, step)

    def _save(self, name, video, sound):
        with tempfile.TemporaryDirectory() as folder:  # FFmpeg writes to no bucket
            path = pathlib.Path(folder) / name
            with VideoWriter(path, video.shape[1:3], self._emo.config.clip.fps, sound) as file:
                file.write(video)
            with whole(self._directory / name) as partial:
                partial.write_bytes(path.read_bytes())

    @functools.cached_property
    def _sampler(self):
        return VideoSampler(self._emo, None, self._config.sampling)

    @functools.cached_property
    def _reconstruct(self):
        return jax.jit(lambda params, images: self._emo.decode(params, self._emo.encode(params, images)))

    @functools.cached_property
    def _decode(self):
        return jax.jit(self._emo.decode)

    @functools.cached_property
    def _people(self):
        """References, masks (B, H, W, 1) and voices (B, samples) of the first records.

        References are pictures (B, H, W, 3), or latents where the data holds these. Records with sound go first; where
        there are none, the people are silent.
        """
        data, size = self._config.data, tuple(self._config.clip.image_size)
        sources = [source for source, _ in pipeline.open_sources(data)]
        loud = [(source, i) for source in sources for i in np.flatnonzero(source.index()["sound"])[:_PEOPLE]]
        mute = [(source, i) for source in sources for i in np.flatnonzero(~source.index()["sound"])[:_PEOPLE]]
        chosen = [_person(source, i, size, data.crop_scale) for source, i in [*loud, *mute][:_PEOPLE]]
        return tuple(np.stack(a) for a in zip(*chosen, strict=True))


def _person(source, position, size, crop_scale):
    record = source[position]
    if isinstance(source, LatentSource):
        window, reference = tuple(record["windows"][0]), source.frames(position, 0, False, 0, 1)[0]
    else:
        frame = mp4.decode_video(record["video"], 0, 1)
        window = transforms.center_window(frame.shape[1:3], size, sum(crop_scale) / 2)
        reference = transforms.crop(frame, window, size)[0]
    mask = transforms.union_mask(record["boxes"][:1], window, size)
    audio = np.zeros(round(_SECONDS * 16_000), np.float32)
    sound = record["audio"][: len(audio)].astype(np.float32) / 32768
    audio[: len(sound)] = sound
    return reference, mask, audio


def _beside(first, second):
    return np.concatenate([np.concatenate(list(a), axis=1) for a in (first, second)], axis=0)
