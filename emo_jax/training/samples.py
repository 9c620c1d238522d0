"""Sample videos during training: held-out people, if there are any, speak with their own voices."""

import contextlib
import functools
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Float, Shaped, UInt8
from ml_collections import ConfigDict

from emo_jax.data import pipeline, transforms
from emo_jax.data.latents import LatentSource
from emo_jax.data.sources import Source
from emo_jax.distributed import processes
from emo_jax.distributed.mesh import replicated
from emo_jax.files import atomic_write
from emo_jax.generation.guided import mesh_for, mode_of
from emo_jax.generation.sampler import VideoSampler
from emo_jax.generation.window_sampler import make_sampler
from emo_jax.media import mp4
from emo_jax.media.video_writer import VideoWriter
from emo_jax.models.emo import EMO
from emo_jax.models.frame_latents import decode_frames, encode_references
from emo_jax.training.metrics import MetricsWriter
from emo_jax.training.step import at_rest
from emo_jax.weights.runs import folder_of

_PEOPLE, _SECONDS = 2, 2.0


class SampleWriter:
    """Writes workdir/samples/STEP_PERSON.mp4 and, to TensorBoard, a strip of frames beside the reference.

    Args:
        config: the full config.
        emo: the networks.
        workdir: the run's folder; may be a bucket.
        writer: takes the images.
        sources: the held-out (source, weight) pairs; empty: those of `config.data`.
    """

    def __init__(
        self,
        config: ConfigDict,
        emo: EMO,
        workdir: str | os.PathLike,
        writer: MetricsWriter,
        sources: Sequence[tuple[Source, float]] = (),
    ) -> None:
        self._config, self._emo, self._writer, self._sources = config, emo, writer, sources
        self._directory = folder_of(workdir) / "samples"

    def write(self, step: int, params: Mapping[str, Any]) -> None:
        """Generates with `params` and writes the result; the VAE's stage writes reconstructions only.

        Every process must call it, because parameters may be sharded over processes. Process 0 generates on its
        devices and writes while the others wait. An error is printed as a warning and training continues.

        Args:
            step: the number of steps done.
            params: {path: array}.
        """
        fetched = processes.fetch(params)  # None except on process 0
        if fetched is not None:
            with failure_is_a_warning(f"no samples at step {step}"):
                place = None if self._mesh is None else replicated(self._mesh)
                self._write(step, placed_params(fetched, self._config.model.dtype, place))
        processes.barrier(f"samples of step {step}")

    @functools.cached_property
    def _mesh(self) -> Mesh | None:
        """This process's devices, which share guidance passes and frames; None for one device."""
        sampling = self._config.sampling
        mode = mode_of(self._config.model, (sampling.reference_scale, sampling.audio_scale))
        is_vae = self._config.train.stage == "vae"  # single images
        return None if is_vae else mesh_for(mode, self._config.clip.frames, jax.local_devices())

    def _write(self, step: int, params: Mapping[str, Any]) -> None:
        references, masks, audio = self._people
        if references.dtype != np.uint8:
            references = np.asarray(self._decode(params, references))
        if self._config.train.stage == "vae":
            images = np.asarray(self._reconstruct(params, references))
            self._writer.image("reconstructions", _two_rows(references, images), step)
            return
        self._sampler.params = params
        print(f"samples of step {step}: {self._directory}", flush=True)
        segments = self._sampler.stream(references, masks, audio, key=jax.random.key(0))
        frames = np.concatenate(list(segments), axis=1)
        self._directory.mkdir(parents=True, exist_ok=True)
        for person, (reference, video, sound) in enumerate(zip(references, frames, audio, strict=True)):
            self._save(f"{step:07d}_{person}.mp4", video, sound)
            strip = np.concatenate([reference, *video[:: max(1, len(video) // 8)]], axis=1)
            self._writer.image(f"sample_{person}", strip, step)

    def _save(self, name: str, video: UInt8[np.ndarray, "frames height width 3"], sound: np.ndarray) -> None:
        with tempfile.TemporaryDirectory() as folder:  # FFmpeg cannot write to a bucket
            path = pathlib.Path(folder) / name
            with VideoWriter(path, video.shape[1:3], self._emo.config.clip.fps, sound) as file:
                file.write(video)
            with atomic_write(self._directory / name) as partial:
                partial.write_bytes(path.read_bytes())

    @functools.cached_property
    def _sampler(self) -> VideoSampler:
        return make_sampler(self._emo, None, self._config.sampling, mesh=self._mesh)

    @functools.cached_property
    def _reconstruct(self) -> Callable[..., UInt8[Array, "people height width 3"]]:
        def reconstruct(params: Any, images: Any) -> Any:
            _, latents = encode_references(self._emo, params, images)
            return decode_frames(self._emo, params, latents, images)[:, 0]

        return jax.jit(reconstruct)

    @functools.cached_property
    def _decode(self) -> Callable[..., UInt8[Array, "people height width 3"]]:
        return jax.jit(self._emo.decode)

    @functools.cached_property
    def _people(
        self,
    ) -> tuple[
        Shaped[np.ndarray, "people _ _ _"], UInt8[np.ndarray, "people height width 1"], Float[np.ndarray, "people _"]
    ]:
        """References, masks and voices of the first records; records with sound come first.

        References are pictures (B, H, W, 3), or latents (B, h, w, c) if the data holds latents. Records without sound
        get a silent voice.
        """
        data, size = self._config.data, tuple(self._config.clip.image_size)
        sources = [source for source, _ in self._sources or pipeline.open_sources(data)]
        voiced, silent = [], []
        for source in sources:
            sound = source.index()["sound"]
            voiced += [(source, int(i)) for i in np.flatnonzero(sound)[:_PEOPLE]]
            silent += [(source, int(i)) for i in np.flatnonzero(~sound)[:_PEOPLE]]
        people = [_person(source, i, size, self._config) for source, i in [*voiced, *silent][:_PEOPLE]]
        references, masks, voices = zip(*people, strict=True)
        return np.stack(references), np.stack(masks), np.stack(voices)


def placed_params(flat: Mapping[str, Any], dtype: str, place: Any = None) -> dict[str, Any]:
    """Returns the params tree to generate with, in the precision that it is used in.

    Args:
        flat: {path: array}.
        dtype: the networks' precision.
        place: a device or a sharding; None for the first device of this process.
    """
    place = jax.local_devices()[0] if place is None else place
    return unflatten_dict({p: jax.device_put(at_rest(p, a, dtype), place) for p, a in flat.items()}, sep="/")


@contextlib.contextmanager
def failure_is_a_warning(consequence: str) -> Iterator[None]:
    """Turns a failure of its body, such as a full disk or latents that are not finite, into a warning.

    Args:
        consequence: what is missing because of the failure, for example "no samples at step 500".
    """
    try:
        yield
    except (OSError, ValueError, FloatingPointError, jax.errors.JaxRuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        print(f"warning: {consequence}: {reason}", file=sys.stderr, flush=True)


def _person(
    source: Any, position: int, size: tuple[int, int], config: ConfigDict
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the reference, mask and voice of one record."""
    record = source[position]
    if isinstance(source, LatentSource):
        window, reference = tuple(record["windows"][0]), source.frames(position, 0, False, 0, 1)[0]
    else:
        frame = mp4.decode_video(record["video"], 0, 1)
        window = transforms.middle_window(frame.shape[1:3], size, config.data, config.clip, record["boxes"][0])
        reference = transforms.crop(frame, window, size)[0]
    mask = transforms.union_mask(record["boxes"][:1], window, size)
    audio = np.zeros(round(_SECONDS * 16_000), np.float32)
    sound = record["audio"][: len(audio)].astype(np.float32) / 32768
    audio[: len(sound)] = sound
    return reference, mask, audio


def _two_rows(first: np.ndarray, second: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
    """Tiles two batches of images (B, H, W, 3) as two rows of one image."""
    return np.concatenate([np.concatenate(list(a), axis=1) for a in (first, second)], axis=0)
