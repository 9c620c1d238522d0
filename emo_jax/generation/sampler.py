"""The video sampler: a scan over clips. One program serves every audio length, seed and portrait (Section 4.1)."""

import copy
import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Key, UInt8
from ml_collections import ConfigDict

from emo_jax.diffusion.clips import clip_keys, clip_windows, first_carry, scan_clips
from emo_jax.diffusion.noise import normal, split
from emo_jax.diffusion.sampler import Hold, sample
from emo_jax.diffusion.schedule import make_schedule, strided, timesteps
from emo_jax.diffusion.solvers import make_solver
from emo_jax.distributed.mesh import replicated, traced_for_mesh
from emo_jax.generation.checks import MAX_LATENT, check_usable
from emo_jax.generation.colors import channel_statistics, match_colors
from emo_jax.generation.drift import towards_portrait
from emo_jax.generation.guided import Params, Scales, guidance_options, guided_denoiser, mode_of, tiles_bank
from emo_jax.generation.options import SAMPLING_OPTIONS
from emo_jax.generation.programs import KeptProgram
from emo_jax.generation.time_inputs import Array, Segment, TimeInputs
from emo_jax.media.timing import frame_count
from emo_jax.models.conditions import BRANCHES, Conditions, mask_conditions
from emo_jax.models.emo import EMO
from emo_jax.models.frame_latents import decode_frames, encode_references

CONTROLS = ("reference", "audio", "motion", "locator", "speed")
"""Conditions that `VideoSampler(off=...)` can replace by their null condition, for the controls of an evaluation."""
_DECODED_PIXELS = 2**20
"""Pixels that a device decodes at once: four frames of 512x512, whose activations take about 2 GB."""
_CPU_OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
"""XLA's default CPU scheduler casts bfloat16 weights to float32 long before use: at full size 10.5 GiB, not 1.6."""


class Inputs(NamedTuple):
    """What a video is sampled from.

    Attributes:
        constants: conditions that are the same in all frames.
        held: latents that stay those of the portrait.
        carry: motion frames of the first clip.
        segments: the inputs of each segment.
        audio: (first frame, frames) -> input of `EMO.audio_features`.
        speed: head rotation speed, a number, (batch,) or (batch, frames).
        batch: number of videos.
        key: the random key.
        scales: guidance scales.
        count: frames of the video.
    """

    constants: Conditions
    held: Hold | None
    carry: Any
    segments: Iterable[Segment]
    audio: Callable[[int, int], Any]
    speed: np.ndarray
    batch: int
    key: Any
    scales: Scales
    count: int


class VideoSampler:
    """Samples a batch of videos of equal length, one segment of K clips of f frames at a time.

    Args:
        emo: the networks.
        params: their parameters.
        sampling: the config's `sampling`: solver, steps, eta, clips (K), speed, reference_scale, audio_scale, and the
            fields of SAMPLING_OPTIONS, which may be missing.
        off: names of CONTROLS to switch off.
        mesh: devices that share the work (see `mesh_for`); None for one device.
        keep: whether to keep traced programs for later processes (`programs.KeptProgram`); only for networks that
            `models.emo.build` makes from their config, and on one device.

    Raises:
        ValueError: the solver or a control is unknown.
    """

    def __init__(
        self,
        emo: EMO,
        params: Params | None,
        sampling: ConfigDict,
        off: Iterable[str] = (),
        mesh: Mesh | None = None,
        keep: bool = False,
    ):
        unknown = set(off) - set(CONTROLS)
        if unknown:
            raise ValueError(f"off names {sorted(unknown)}; expected names from {', '.join(CONTROLS)}")
        self.emo, self.config, self.off, self.mesh = emo, sampling, frozenset(off), mesh
        for name in ("hold_colors", "reencode_motion"):
            if emo.uses_flow and sampling.get(name, False):
                raise ValueError(f"sampling.{name} is True; expected False with model.vae.flow_channels")
        self.params = self._replicate(params)
        self.mode = mode_of(emo.config.model, (sampling.reference_scale, sampling.audio_scale))
        self._key = self._settings() if keep and mesh is None else None
        self._schedule = make_schedule(emo.config.diffusion)
        self._guidance = guidance_options(sampling, self._schedule.train_steps)
        self._solver = make_solver(sampling.solver, self._schedule, sampling.eta)
        self._timesteps = timesteps(self._schedule, sampling.steps, self._schedule.spacing)
        options, ddim = ConfigDict({**SAMPLING_OPTIONS, **sampling}), sampling.solver == "ddim"
        self._t_nexts = strided(self._schedule, self._timesteps) if options.stride and ddim else None
        self._deep_interval = int(options.deep_interval)
        self._tiled = tiles_bank(sampling, self.mode)
        self._reencodes = bool(options.reencode_motion) and emo.config.clip.motion_frames > 0
        self._return = float(options.portrait_return)
        if self._return and not emo.uses_flow:
            raise ValueError(f"sampling.portrait_return is {self._return}; expected 0 without model.vae.flow_channels")
        self._starts_with_portrait = emo.config.clip.get("first_motion", "zeros") == "portrait"
        self._branch_weights = np.array([options[f"{branch}_weight"] for branch in BRANCHES], np.float32)
        self._prepare = self._jit(self._prepare_fn)
        self._segment = self._jit(self._segment_fn)
        self._decode = self._jit(self._decode_fn)
        self._hold_colors = bool(sampling.get("hold_colors", False))
        self._statistics, self._match = self._jit(channel_statistics), self._jit(self._match_fn)
        # Not the maximum: XLA's reduction ignores NaN on CPUs. A comparison with NaN is False.
        self._usable = jax.jit(lambda latents: jnp.all(jnp.abs(latents) <= MAX_LATENT, axis=(0, 2, 3, 4, 5)))
        self.time = TimeInputs(emo, sampling.clips)

    def with_params(self, params: Params) -> "VideoSampler":
        """Returns a sampler with the same programs, traced once, and other parameters: a copy on another device."""
        other = copy.copy(self)
        other.params, other.time = self._replicate(params), copy.copy(self.time)
        return other

    def _settings(self) -> str:
        """Returns what the programs depend on, apart from their arguments, of which the scales and speeds are some."""
        config, arguments = self.emo.config, ("reference_scale", "audio_scale", "speed")
        parts = {name: config[name].to_dict() for name in ("model", "clip", "diffusion")}
        sampling = {name: value for name, value in self.config.items() if name not in arguments}
        return repr((type(self).__name__, parts, sampling, self.mode, sorted(self.off)))

    def _jit(self, function: Callable) -> Any:
        options = _CPU_OPTIONS if jax.default_backend() == "cpu" else None
        if self._key is not None:
            return KeptProgram(function, f"{getattr(function, '__name__', '')} {self._key}", options)
        if self.mesh is None:
            return jax.jit(function, compiler_options=options)
        out = replicated(self.mesh)
        return jax.jit(traced_for_mesh(self.mesh, function), out_shardings=out, compiler_options=options)

    def _replicate(self, tree: Any) -> Any:
        return tree if self.mesh is None else jax.device_put(tree, replicated(self.mesh))

    @property
    def frames_per_segment(self) -> int:
        """Number of frames of a full segment, K * f; the first segment has one clip, the last one the rest."""
        return self.config.clips * self.emo.config.clip.frames

    def compilations(self) -> int:
        """Returns how many segment programs have been compiled.

        At most one per batch size, or two if there are both constant and varying speeds.
        """
        return self._segment._cache_size()

    def stream(
        self,
        references: UInt8[Array, "batch height width 3"],
        masks: UInt8[Array, "batch height width 1"],
        audio: Float[Array, "batch samples"] | Sequence[Float[np.ndarray, " _"]],
        **options: Any,
    ) -> Iterator[UInt8[np.ndarray, "batch frames height width 3"]]:
        """Yields the frames of one segment at a time, while the next segment is computed.

        The first segment is a single clip, so that frames can be shown soon.

        Args:
            references: the portraits.
            masks: regions in which the faces may move (1), as the Face Locator takes them.
            audio: sound at 16 kHz, levelled as in training; a list may have sounds of different lengths.
            **options: as `sample` takes them; the key is required.

        Yields:
            Frames; the segments have the ceil(seconds * fps) frames of the longest sound together.

        Raises:
            ValueError: `scales` belong to another guidance mode, which needs another program.
            FloatingPointError: the latents of a segment are not finite or exceed MAX_LATENT.
        """
        for index, (frames, usable) in enumerate(self.sample(references, masks, audio, **options)):
            check_usable(bool(usable.all()), index)
            yield frames

    def sample(
        self,
        references: UInt8[Array, "batch height width 3"],
        masks: UInt8[Array, "batch height width 1"],
        audio: Float[Array, "batch samples"] | Sequence[Float[np.ndarray, " _"]],
        *,
        key: Key[Array, "*videos"],
        speed: Any = None,
        scales: Scales | None = None,
        hold: Float[Array, "batch latent_height latent_width 1"] | None = None,
        face: Float[Array, "batch embedding"] | None = None,
        regions: Sequence[Float[Array, "batch _ _ branches"]] | None = None,
        branch_weights: Float[Array, " branches"] | None = None,
        on_window: Callable[[int, int], None] | None = None,
        segments: Iterator[Segment] | None = None,
    ) -> Iterator[tuple[UInt8[np.ndarray, "batch frames height width 3"], Bool[np.ndarray, " batch"]]]:
        """Yields the frames of one segment at a time, and which videos have usable latents there.

        Args:
            references: the portraits.
            masks: see `stream`.
            audio: see `stream`.
            key: the random key, or (batch,) keys, with which a video does not depend on the others; equal keys and
                inputs give equal frames.
            speed: head rotation speed in degrees per frame, a number, (batch,) or (batch, frames); None for
                the config's.
            scales: guidance scales of the same guidance mode as the config's; None for the config's.
            hold: 1 at the latents that stay those of the portrait in every frame, else 0; None holds none, in a program
                without this step.
            face: identity embeddings of the faces, for networks with face tokens; see `EMO.conditions`.
            regions: of the branches of audio modules; see `EMO.conditions`.
            branch_weights: weights of these branches; None for the config's.
            on_window: called with (windows done, all windows) before there are frames, by sampling in windows.
            segments: the segments of live sound, which replace `audio` and `speed`. The frames of a segment, all frames
                of its clips, are yielded before the next segment is requested.

        Raises:
            ValueError: `scales` belong to another guidance mode, which needs another program.
        """
        is_live, fps = segments is not None, self.emo.config.clip.fps
        count = sys.maxsize if is_live else max(frame_count(len(samples), fps) for samples in audio)
        speed = np.asarray(self.config.speed if speed is None else speed, np.float32)
        scales = self._check_scales(scales)
        weights = self._branch_weights if branch_weights is None else np.asarray(branch_weights, np.float32)
        constants, held, carry = self._prepare(self.params, references, masks, hold, face, regions, weights)
        hearing, batch = self.time.hearing(self.params, audio), len(references)
        if segments is None:
            # The colours of a long first segment are a better measure than those of one clip.
            segments = self.time.segments(hearing, speed, batch, count, None if self._hold_colors else 1)
        inputs = Inputs(constants, held, carry, segments, hearing, speed, batch, key, scales, count)
        pending, first = None, 0
        for latents, clips in self._latents(inputs, on_window):
            wanted = min(clips * self.emo.config.clip.frames, count - first)
            frames = self._decode(self.params, latents, np.int32(clips), references)[:, :wanted]
            if pending is not None:
                yield np.asarray(pending[0]), np.asarray(pending[1])
            pending, first = (frames, self._usable(latents)), first + wanted
            if is_live:
                yield np.asarray(pending[0]), np.asarray(pending[1])
                pending = None
        if pending is not None:
            yield np.asarray(pending[0]), np.asarray(pending[1])

    def _latents(self, inputs: Inputs, on_window: Callable[[int, int], None] | None) -> Iterator[tuple[Any, int]]:
        """Yields the latents of each segment (K, B, f, h, w, c), and how many of its K clips belong to the video."""
        carry, statistics, first_clip = inputs.carry, None, 0
        for window, speeds, clips in inputs.segments:
            own = (window, speeds, inputs.key, np.int32(first_clip), np.int32(clips))
            carry, latents = self._segment(self.params, inputs.constants, carry, own, inputs.scales, inputs.held)
            if self._hold_colors and statistics is None:
                statistics = self._statistics(latents[:clips])
            elif self._hold_colors:
                carry, matched = self._match(self.params, carry, latents[:clips], statistics, inputs.held)
                latents = latents.at[:clips].set(matched)
            yield latents, clips
            first_clip += clips

    def _check_scales(self, scales: Scales | None) -> tuple[np.float32, np.float32]:
        reference, audio = (self.config.reference_scale, self.config.audio_scale) if scales is None else scales
        if mode_of(self.emo.config.model, (reference, audio)) != self.mode:
            raise ValueError(
                f"scales are {(reference, audio)}; expected guidance mode {self.mode!r}: make another VideoSampler"
            )
        return np.float32(reference), np.float32(audio)

    def _prepare_fn(
        self,
        params: Params,
        references: Array,
        masks: Array,
        hold: Array | None,
        face: Any,
        regions: Any,
        branch_weights: Array,
    ) -> tuple[Conditions, Hold | None, Any]:
        """Computes the constants of a video (conditions, held latents) and the initial carry."""
        n, uses_reference = self.emo.config.clip.motion_frames, self.emo.config.model.reference_attention != "off"
        starts_with_portrait = self._starts_with_portrait and n > 0 and "reference" not in self.off
        batch = len(references)
        encodes, held = uses_reference or starts_with_portrait or hold is not None, None
        known, latents = encode_references(self.emo, params, references) if encodes else (None, None)
        if hold is not None:
            assert latents is not None
            held = Hold(jnp.asarray(hold, jnp.float32)[:, None], latents)
        conditions = self.emo.conditions(
            params,
            reference=known if uses_reference else None,
            mask=masks,
            face=face,
            regions=regions,
            branch_weights=jnp.broadcast_to(branch_weights, (batch, len(BRANCHES))),
            tiled=self._tiled,
        )
        if "locator" in self.off and conditions.location is not None:
            conditions = dataclasses.replace(conditions, location=jnp.zeros_like(conditions.location))
        if starts_with_portrait and latents is not None:
            return conditions, held, (jnp.repeat(latents, n, axis=1), jnp.ones(batch, bool))
        return conditions, held, first_carry(batch, n, self.emo.latent_shape)

    def _segment_fn(
        self, params: Params, constants: Any, carry: Any, inputs: Any, scales: Scales, held: Hold | None
    ) -> tuple[Any, Any]:
        """Samples the clips of a segment; returns the carry and latents (K, B, f, h, w, c)."""
        window, speed, key, first_clip, count = inputs
        clip, clips = self.emo.config.clip, self.config.clips
        audio_features = self.emo.audio_features(params, window, clips * clip.frames + 2 * clip.audio_window)
        is_constant = speed.shape[1] == 1 + 2 * clip.audio_window
        per_clip = (
            clip_windows(audio_features, clips, clip.frames, clip.audio_window),
            clip_windows(speed, clips, 0 if is_constant else clip.frames, clip.audio_window),
            clip_keys(key, first_clip, clips),
        )
        make_clip = functools.partial(self._clip, params, constants, scales, held)
        return scan_clips(make_clip, carry, per_clip, self._next_motion(params), count)

    def _next_motion(self, params: Params) -> Callable[[Any], Any] | None:
        """Returns a function from the latents of a clip's last frames to those of the next clip's motion frames."""

        def reencode(latents: Array) -> Array:
            # One image at a time: those of many videos together would take more memory than a denoising step.
            images = jnp.asarray(latents).reshape(-1, *latents.shape[-3:])
            return jax.lax.map(functools.partial(self.emo.reencode, params), images).reshape(latents.shape)

        return reencode if self._reencodes else None

    def _clip(self, params: Params, constants: Any, scales: Scales, held: Hold | None, carry: Any, inputs: Any) -> Any:
        """Samples one clip; returns latents (B, f, h, w, c)."""
        (motion, has_motion), (audio_features, speed, key) = carry, inputs
        if "motion" in self.off:
            has_motion = jnp.zeros_like(has_motion)
        conditions = self._conditions(params, constants, audio_features, speed, motion=motion, has_motion=has_motion)
        noise_key, solver_key = split(key, 2)
        noise = self._noise(noise_key, len(motion))
        interval = self._deep_interval
        guided = guided_denoiser(self.emo, params, conditions, self.mode, scales, interval > 1, **self._guidance)
        times = self._timesteps, solver_key, held, self._t_nexts
        latents = sample(guided, self._schedule, self._solver, noise, *times, interval)
        flow = self.emo.config.model.vae.get("flow_channels", 0)
        return towards_portrait(latents, self._return, flow) if self._return else latents

    def _conditions(self, params: Params, constants: Any, features: Array, speed: Array, **motion: Any) -> Conditions:
        """Adds the inputs of f frames to the conditions of the video, and removes those that are switched off."""
        motion |= dict(audio=features, speed=None if "speed" in self.off else speed)
        conditions = self.emo.conditions(params, base=constants, tiled=self._tiled, **motion)
        present = [jnp.full(len(features), name not in self.off) for name in ("reference", "audio")]
        # Where the reference is off, networks with a null condition leave out the location as well; here it stays.
        return dataclasses.replace(mask_conditions(conditions, *present), location=conditions.location)

    def _noise(self, key: Key[Array, "*videos"], batch: int) -> Array:
        return normal(key, (batch, self.emo.config.clip.frames, *self.emo.latent_shape))

    def _match_fn(
        self, params: Params, carry: Any, latents: Array, statistics: tuple[Array, Array], held: Hold | None
    ) -> Any:
        """Gives a segment the colours of another; see `match_colors`."""
        return match_colors(carry, latents, statistics, held, self._next_motion(params))

    def _decode_fn(self, params: Params, latents: Array, count: Any, references: Any = None) -> Any:
        """Decodes latents (K, B, f, h, w, c) of the first `count` clips to uint8 frames (B, K * f, H, W, 3).

        A group of frames is decoded at a time; the frames of the other clips are zeros.
        """
        clips, batch, frames = latents.shape[:3]
        pixels = batch * math.prod(self.emo.config.clip.image_size)
        most = _DECODED_PIXELS * (1 if self.mesh is None else self.mesh.shape["frame"]) // pixels
        group = max(n for n in range(1, frames + 1) if frames % n == 0 and n <= max(1, most))
        pattern = "clips batch (groups group) h w c -> (clips groups) batch group h w c"
        latents = rearrange(latents, pattern, group=group)

        def decode(latents: Array) -> Array:
            return decode_frames(self.emo, params, latents, references)

        def step(index: Any, images: Any) -> Any:
            decoded = decode(jax.lax.dynamic_index_in_dim(latents, index, keepdims=False))
            return jax.lax.dynamic_update_index_in_dim(images, decoded, index, 0)

        one = jax.eval_shape(decode, latents[0])
        images = jnp.zeros((len(latents), *one.shape), one.dtype)
        images = jax.lax.fori_loop(0, count * (frames // group), step, images)
        return rearrange(images, "groups batch group h w c -> batch (groups group) h w c")
