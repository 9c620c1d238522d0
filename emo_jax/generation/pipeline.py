"""The pipeline: generation with one set of weights."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict, FrozenConfigDict
from tqdm.auto import tqdm

from emo_jax import tpu
from emo_jax.cache import keep_programs
from emo_jax.faces.boxes import Box
from emo_jax.generation.checks import check_params
from emo_jax.generation.framing import MAX_SIZE
from emo_jax.generation.guided import Params, mesh_for, mode_of
from emo_jax.generation.inputs import AudioLike, PortraitLike, check_size, load_voice
from emo_jax.generation.many import in_turn, sample_many, sample_one
from emo_jax.generation.options import SAMPLING_OPTIONS, check_sampling
from emo_jax.generation.prepared import prepare
from emo_jax.generation.sampler import VideoSampler
from emo_jax.generation.video import FrameStream, Video, provenance
from emo_jax.generation.window_sampler import make_sampler
from emo_jax.models.emo import EMO
from emo_jax.models.int8 import dequantised_flat
from emo_jax.weights.store import load_model, save_weights

Callback: TypeAlias = Callable[["EmoPipeline", int, np.ndarray], None]
"""Called after each segment with the pipeline, the number of the segment and its frames."""


class EmoPipeline:
    """Generates talking videos from a portrait and a voice.

        pipe = EmoPipeline.from_pretrained("small")
        pipe("portrait.png", "voice.wav").save("out.mp4")

    A program is compiled at the first use of a solver, a number of steps, a guidance mode and a framing. Other
    portraits, voices, lengths, seeds, speeds and guidance scales reuse it.

    Pipelines can be pickled. They do not work in forked processes, as JAX does not.

    Args:
        emo: the networks (`models.emo.build`).
        params: their parameters.
        name: name of the weights, for the metadata of written files.

    Attributes:
        config: the config of the networks, with the defaults of `stream` in `config.sampling`.
        params: the parameters.
    """

    def __init__(self, emo: EMO, params: Params, name: str = "unnamed"):
        _check_process()
        self.config: ConfigDict = emo.config
        self.params, self.name, self._emo = params, name, emo
        self._samplers: dict[Any, VideoSampler] = {}
        self._traced: dict[Any, VideoSampler] = {}  # shared by pipelines on single devices
        self._progress_bar: dict[str, Any] = {}
        self._devices: tuple[Any, ...] | None = None  # None: all of this process
        self._keeps_programs = False

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state without compiled programs, the parameters as numpy arrays."""
        params = jax.tree.map(np.asarray, self.params)
        return {**self.__dict__, "params": params, "_samplers": {}, "_traced": {}, "_devices": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores the state.

        Raises:
            RuntimeError: this process was forked from one that used a pipeline.
        """
        _check_process()
        self.__dict__.update({**state, "params": jax.tree.map(jnp.asarray, state["params"])})

    @classmethod
    def from_pretrained(
        cls, name_or_dir: str | os.PathLike, size: int | Sequence[int] | None = None, **sampling: Any
    ) -> "EmoPipeline":
        """Loads a pipeline, and makes JAX keep compiled programs for later processes (see `cache.keep_programs`).

        Args:
            name_or_dir: a preset ("small"), a folder written by `emo export`, or the folder of an `emo train` run.
            size: (height, width) of the frames, or the side of square ones, in place of the trained size. The bundled
                weights accept no other size; for other weights a warning names the trained size.
            **sampling: fields of the config's `sampling` to replace: solver, steps, clips (per segment), ...

        Raises:
            ValueError: there are no such weights, the weights belong to another config, or a field of `sampling` is
                unknown or out of range.
            FloatingPointError: all weights of a part are zero, or weights of the VAE are not finite.
            RuntimeError: this process was forked from one that used a pipeline.
        """
        _check_process()
        tpu.describe_no_slice()
        keep_programs()
        emo, params = load_model(name_or_dir, None if size is None else check_size(size))
        config = ConfigDict(emo.config)  # a copy: that of the networks is frozen
        fields = config.sampling = ConfigDict({**SAMPLING_OPTIONS, **config.sampling})
        unknown = sorted(set(sampling) - set(fields))
        if unknown:
            raise ValueError(f"sampling has no field {unknown[0]!r}; expected one of {', '.join(fields)}")
        try:
            fields.update(sampling)
        except TypeError as error:
            raise ValueError(f"sampling: {error}") from error
        check_sampling(fields, config.diffusion.train_steps)
        check_params(params, name_or_dir)
        name = os.path.basename(os.path.normpath(name_or_dir))
        pipe = cls(dataclasses.replace(emo, config=FrozenConfigDict(config)), params, name)
        pipe._keeps_programs = True
        return pipe

    @property
    def fps(self) -> float:
        """Frames per second of the generated video."""
        return self.config.clip.fps

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of the frames that the networks make."""
        height, width = self.config.clip.image_size
        return height, width

    def __repr__(self) -> str:
        """Returns the size of the frames and the defaults of the sampler in one line."""
        (height, width), sampling = self.size, self.config.sampling
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return (
            f"EmoPipeline({width}x{height} pixels, {self.fps:g} fps, {sampling.solver} with {sampling.steps} steps, "
            f"{parameters / 1e6:.1f}M parameters)"
        )

    @overload
    def __call__(
        self,
        portrait: PortraitLike,
        audio: AudioLike,
        *,
        callback_on_segment_end: Callback | None = None,
        **options: Any,
    ) -> Video: ...

    @overload
    def __call__(
        self,
        portrait: PortraitLike | list[PortraitLike],
        audio: AudioLike | list[AudioLike],
        *,
        callback_on_segment_end: Callback | None = None,
        batch_size: int = 1,
        **options: Any,
    ) -> Video | list[Video]: ...

    def __call__(
        self,
        portrait: PortraitLike | list[PortraitLike],
        audio: AudioLike | list[AudioLike],
        *,
        callback_on_segment_end: Callback | None = None,
        batch_size: int = 1,
        **options: Any,
    ) -> Video | list[Video]:
        """Generates a video, or a list of videos, and returns it in memory.

        Shows a progress bar if stderr is a terminal or a notebook; see `set_progress_bar_config`.

        Args:
            portrait: as in `stream`, or a list.
            audio: as in `stream`, or a list. The sound track keeps its channels, and its rate if mp4 files carry it.
            callback_on_segment_end: called as callback(pipeline, number of the segment, its frames).
            batch_size: number of videos of a list that one program makes together, over all devices; memory grows with
                it. Another size is another program.
            **options: keyword arguments of `stream`. With lists of portraits or audio, each may be a list, too.

        Returns:
            The video. With a list of n portraits or n audio, a list of n videos, equal to those of n calls (up to
            rounding, if `batch_size` is above 1). An argument that is not a list applies to all of them.

        Raises:
            ValueError: an input cannot be used, or lists have different lengths.
        """
        if not isinstance(portrait, list) and not isinstance(audio, list):
            return self._generate([dict(portrait=portrait, audio=audio, **options)], callback_on_segment_end)[0]
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}; expected an integer of at least 1")
        arguments = dict(portrait=portrait, audio=audio, **options)
        lengths = {name: len(value) for name, value in arguments.items() if isinstance(value, list)}
        if len(set(lengths.values())) > 1:
            counts = " and ".join(f"{name} has {length}" for name, length in lengths.items())
            raise ValueError(f"{counts} items; expected lists of equal length")
        calls = [
            {name: value[index] if isinstance(value, list) else value for name, value in arguments.items()}
            for index in range(max(lengths.values()))
        ]
        videos = []
        for first in range(0, len(calls), batch_size):
            videos += self._generate(calls[first : first + batch_size], callback_on_segment_end, batch_size)
        return videos

    def _generate(self, calls: list[dict[str, Any]], callback: Callback | None, batch_size: int = 1) -> list[Video]:
        """Generates the videos of the arguments of calls, together if `batch_size` is above 1."""
        _check_process()
        voices = [load_voice(call["audio"]) for call in calls]
        streams = self.streams([call | dict(audio=v) for call, v in zip(calls, voices, strict=True)], batch_size)
        segments: list[list[np.ndarray]] = [[] for _ in calls]
        # disable=None: no bar in files and pipes.
        shown = {"total": sum(stream.total for stream in streams), "desc": "generate", "unit": "frame", "disable": None}
        with tqdm(**shown | self._progress_bar) as bar:
            for index, frames in in_turn(streams):
                segments[index].append(frames)
                bar.update(len(frames))
                if callback is not None:
                    callback(self, len(segments[index]) - 1, frames)
        return [
            Video(
                np.concatenate(frames),
                self.fps,
                voice.track.read(),
                voice.track.rate,
                provenance(self.name, call.get("seed", 0)),
            )
            for call, voice, frames in zip(calls, voices, segments, strict=True)
        ]

    def set_progress_bar_config(self, **config: Any) -> None:
        """Sets arguments of the progress bar (tqdm) of later calls, such as disable=True."""
        self._progress_bar = config

    def save_pretrained(self, directory: str | os.PathLike, dtype: str = "float32") -> None:
        """Writes config.json and model.safetensors, which `from_pretrained` reads, to a folder.

        Args:
            directory: the folder; it is created.
            dtype: precision of the weights in the file, "float32" or "float16".

        Raises:
            ValueError: the precision is unknown or does not hold the weights, or the folder cannot be written.
        """
        if dtype not in ("float32", "float16"):
            raise ValueError(f"dtype is {dtype!r}; expected 'float32' or 'float16'")
        with np.errstate(over="ignore"):
            stored = dequantised_flat(flatten_dict(dict(self.params), sep="/"))
            flat = {path: np.asarray(a).astype(dtype) for path, a in stored.items()}
        for path, array in flat.items():
            if not np.isfinite(array).all():
                raise ValueError(f"{path} is not finite as {dtype}; save in float32, or train again")
        try:
            save_weights(directory, self.config, flat, np.dtype(dtype).type)
        except OSError as error:
            raise ValueError(f"{directory} cannot be written ({error.strerror}); choose another folder") from error

    def stream(
        self,
        portrait: PortraitLike,
        audio: AudioLike,
        *,
        seed: int = 0,
        steps: int | None = None,
        solver: str | None = None,
        reference_scale: float | None = None,
        audio_scale: float | None = None,
        speed: float | np.ndarray | None = None,
        face_box: Box | int | None = None,
        framing: str = "portrait",
        max_size: int = MAX_SIZE,
        face_embedding: Any = None,
        on_window: Callable[[int, int], None] | None = None,
        **weights: float | None,
    ) -> FrameStream:
        """Generates a video segment by segment, in memory that does not grow with its length.

        Validates eagerly: raises on call, not when the first segment is requested.

        Args:
            portrait: a path, a Pillow image, or uint8 RGB (height, width, 3). It is cropped around the face.
            audio: a path, or float32 (samples,) in [-1, 1] at 16 kHz. Its loudness is levelled as in training.
            seed: 0 to 2**32 - 1. Equal seeds and inputs give equal frames.
            steps: denoising steps; None for the config's, as for the arguments that follow.
            solver: "ddim", "dpm++2m", or "lcm" for distilled weights.
            reference_scale: guidance towards the portrait. Set both scales to 1 to disable guidance.
            audio_scale: guidance towards the voice.
            speed: head rotation speed in degrees per frame; or a curve, pairs of a time in seconds and a speed.
            face_box: (x0, y0, x1, y1) of the face in pixels of the portrait, forehead to chin; or the number of a
                detected face, the largest first; None for the largest.
            framing: "portrait" pastes the generated frames back into the portrait; "crop" returns them as they are.
            max_size: limit of the shorter side of the frames in pixels, for the framing "portrait".
            face_embedding: identity embedding of the face, for weights such as hallo's; None: zeros.
            on_window: called with (windows done, all windows) by weights that are sampled in windows, such as
                EchoMimic's, whose frames come when all windows are done.
            **weights: pose_weight, face_weight, lip_weight: how much the voice moves these (weights such as hallo's).

        Returns:
            An iterator of the segments' frames, ceil(seconds * fps) frames together, with their size. It raises
            FloatingPointError if the latents of a segment are not finite or implausibly large.

        Raises:
            ValueError: an input cannot be used.
            RuntimeError: this process was forked from one that used a pipeline.
        """
        call = dict(seed=seed, steps=steps, solver=solver, reference_scale=reference_scale, audio_scale=audio_scale)
        call |= dict(speed=speed, face_box=face_box, framing=framing, max_size=max_size) | weights
        call |= dict(portrait=portrait, audio=audio, face_embedding=face_embedding, on_window=on_window)
        return self.streams([call])[0]

    def streams(self, calls: Sequence[dict[str, Any]], batch_size: int = 1) -> list[FrameStream]:
        """Starts several videos, of which one program makes up to `batch_size` together.

        Iterate over the results in turn (`in_turn`): frames of a batch are kept until they are taken.

        Args:
            calls: the arguments of `stream` for each video.
            batch_size: videos that a program makes together. They need equal framing, solver, steps and scales; others
                are divided into several batches.

        Raises:
            ValueError: an input cannot be used.
        """
        _check_process()
        videos = [prepare(self._emo, **call) for call in calls]
        frames, groups = dict[int, Iterator[np.ndarray]](), dict[Any, list[int]]()
        for index, video in enumerate(videos):
            groups.setdefault(video.group(), []).append(index)
        sampling = self.config.sampling
        for indices in groups.values():
            # hallo's tiling of the bank repeats rows, so that a row would get another video's portrait; overlapping
            # windows go around the end of a video, so that rows must be equally long.
            together = sampling.get("strategy", "clips") == "clips" and not sampling.get("bank_tiling", False)
            size = batch_size if together else 1
            for part in (indices[first : first + size] for first in range(0, len(indices), size)):
                sampler = self.sampler(videos[part[0]].sampling, size)
                if size == 1:
                    frames[part[0]] = sample_one(sampler, videos[part[0]])
                else:
                    frames |= zip(part, sample_many(sampler, [videos[index] for index in part], size), strict=True)
        for index, video in enumerate(videos):
            if video.canvas is not None:
                frames[index] = map(video.canvas.paste, frames[index])
        return [FrameStream(frames[index], video.size, video.total) for index, video in enumerate(videos)]

    def on(self, devices: Sequence[Any]) -> "EmoPipeline":
        """Returns a pipeline with the same weights that uses these devices alone; others may run beside it."""
        pipe = EmoPipeline(self._emo, jax.device_put(self.params, devices[0]), self.name)
        pipe._devices, pipe._progress_bar, pipe._traced = tuple(devices), self._progress_bar, self._traced
        pipe._keeps_programs = self._keeps_programs
        return pipe

    def compilations(self) -> int:
        """Returns how many programs have been compiled: one per solver, steps, guidance, framing and batch size."""
        return sum(sampler.compilations() for sampler in self._samplers.values())

    def sampler(self, sampling: ConfigDict, batch: int = 1) -> VideoSampler:
        """Returns the sampler of a solver, steps, clips and guidance mode, for batches of this size."""
        mode = mode_of(self.config.model, (sampling.reference_scale, sampling.audio_scale))
        key = (sampling.solver, sampling.steps, sampling.clips, mode, batch)
        if key not in self._samplers:
            mesh = mesh_for(mode, self.config.clip.frames, self._devices, batch)
            params = next((other.params for other in self._samplers.values() if other.mesh == mesh), self.params)
            sampler = make_sampler(self._emo, params, sampling, mesh=mesh, keep=self._keeps_programs)
            if mesh is None:  # one trace serves all devices
                sampler = self._traced.setdefault(key, sampler).with_params(params)
            self._samplers[key] = sampler
        return self._samplers[key]


_process: int | None = None
"""The process that first used a pipeline; a forked process inherits the value."""


def _check_process() -> None:
    """Raises RuntimeError in a process forked from one that used a pipeline, where JAX would wait for lost threads."""
    global _process
    _process = _process or os.getpid()
    if _process != os.getpid():
        raise RuntimeError(
            f"process {os.getpid()} was forked from {_process}, which has used an EmoPipeline, and JAX does not work "
            "after a fork; start processes by multiprocessing.get_context('spawn')"
        )
