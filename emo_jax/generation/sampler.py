"""Generation of videos, segment by segment: one program for every audio length, seed and portrait (Section 4.1)."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from emo_jax.diffusion.clips import clip_keys, first_carry, scan_clips, segments
from emo_jax.diffusion.guidance import PASSES, guidance_mode, guide
from emo_jax.diffusion.sampler import sample
from emo_jax.diffusion.schedule import make_schedule, timesteps
from emo_jax.diffusion.solvers import make_solver
from emo_jax.distributed.mesh import make_mesh, replicated, traced_for_mesh
from emo_jax.media.timing import cut, frame_count, window_bounds
from emo_jax.models.attention import Conditions
from emo_jax.models.audio_encoder import Recording
from emo_jax.models.emo import mask_features, switch

CONTROLS = ("reference", "audio", "motion", "locator", "speed")
"""What `off` can replace by its null condition, for the controls of an evaluation."""
_DECODED_PIXELS = 2**20
"""Decoded at once by a device: four frames of 512x512, which take about 2 GB on their way."""
_LEAN = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
"""On CPUs: XLA else turns bfloat16 weights to float32 long before their use: 10.5 GiB in place of 1.6 at full size."""


def check_sampling(config, train_steps) -> None:
    """Raises ValueError where a `sampling` config makes no video, or has steps that training did not have."""
    if not 1 <= config.steps <= train_steps:
        raise ValueError(
            f"sampling.steps is {config.steps}; expected 1 to {train_steps}, the number of training timesteps"
        )
    if config.clips < 1:
        raise ValueError(f"sampling.clips is {config.clips}; expected 1 or more")


class VideoSampler:
    """Samples a batch of B videos of equal length, K clips of f frames at a time.

    Args:
        emo: the networks. params: their params tree.
        config: the `sampling` config: solver, steps, eta, clips (K), reference_scale, audio_scale.
        off: names of CONTROLS. mesh: of the devices that share the work (see `mesh_for`); None: one device.

    Raises:
        ValueError: an unknown solver or control, or scales of a sort that the solver cannot take.
    """

    def __init__(self, emo, params, config, off=(), mesh=None):
        unknown = set(off) - set(CONTROLS)
        if unknown:
            raise ValueError(f"off names {sorted(unknown)}; expected some of {', '.join(CONTROLS)}")
        self.emo, self.config, self.off, self.mesh = emo, config, frozenset(off), mesh
        self.params = self._placed(params)
        self.mode = guidance_mode(config.reference_scale, config.audio_scale)
        self._schedule = make_schedule(emo.config.diffusion)
        self._solver = make_solver(config.solver, self._schedule, config.eta)
        self._timesteps = timesteps(self._schedule, config.steps, self._schedule.spacing)
        self._prepare = self._jit(self._prepare_fn)
        self._segment = self._jit(self._segment_fn)
        self._decode = self._jit(self._decode_fn)
        self._listen, self._recording = jax.jit(emo.hidden_states), None

    def _jit(self, function):
        options = _LEAN if jax.default_backend() == "cpu" else None
        if self.mesh is None:
            return jax.jit(function, compiler_options=options)
        out = replicated(self.mesh)
        return jax.jit(traced_for_mesh(self.mesh, function), out_shardings=out, compiler_options=options)

    def _placed(self, tree):
        return tree if self.mesh is None else jax.device_put(tree, replicated(self.mesh))

    @property
    def frames_per_segment(self):
        """Frames that one call of the compiled program makes."""
        return self.config.clips * self.emo.config.clip.frames

    def compilations(self):
        """How many programs were compiled for segments: 1, whatever was generated."""
        return self._segment._cache_size()

    def stream(self, references, masks, audio, *, speed=None, scales=None, key):
        """Yields frames uint8 (B, up to K * f, H, W, 3), one segment at a time, the next being computed meanwhile.

        Args:
            references: uint8 (B, H, W, 3), the portraits. masks: uint8 (B, H, W, 1), where the face may be.
            audio: float32 (B, samples) at 16 kHz. speed: degrees per frame, a number or (B,); None: the config's.
            scales: (reference_scale, audio_scale) of the same guidance mode as the config's; None: the config's.
            key: a jax.random key.

        Raises:
            ValueError: scales of another mode, which is another program.
        """
        clip, count = self.emo.config.clip, frame_count(audio.shape[1], self.emo.config.clip.fps)
        size, per = len(references), self.frames_per_segment
        speed = self.config.speed if speed is None else speed
        speeds = np.broadcast_to(np.asarray(speed, np.float32).reshape(-1, 1), (size, per + 2 * clip.audio_window))
        scales = self._scales(scales)
        known = self._prepare(self.params, references, masks)
        carry = self._placed(first_carry(size, clip.motion_frames, self.emo.latent_shape))
        sound = self._sound(audio)
        pending = None
        for index in range(segments(count, clip.frames, self.config.clips).count):
            first = index * per
            window = sound(first - clip.audio_window, per + 2 * clip.audio_window)
            inputs = (window, speeds, key, np.int32(index * self.config.clips))
            carry, latents = self._segment(self.params, known, carry, inputs, scales)
            frames = self._decode(self.params, latents)
            if pending is not None:
                yield np.asarray(pending)
            pending = frames[:, : min(per, count - first)]
        yield np.asarray(pending)

    def _sound(self, audio):
        """(first frame, frames) -> what EMO.audio_features takes: waveforms, or wav2vec 2.0's features.

        The features of the recordings that were asked for last are kept.
        """
        clip, encoder = self.emo.config.clip, self.emo.audio_encoder
        if encoder is None:
            return lambda *frames: np.stack([cut(a, *window_bounds(*frames, clip.fps)) for a in audio])
        weights, known = self.params["audio_encoder"], self._recording
        if known is None or known[0] is not weights or not np.array_equal(known[1].audio, audio):
            listen = functools.partial(self._listen, {"audio_encoder": weights})
            self._recording = weights, Recording(listen, audio, clip.fps, clip.audio_window, encoder.config)
        return self._recording[1]

    def _scales(self, scales):
        scales = (self.config.reference_scale, self.config.audio_scale) if scales is None else scales
        if guidance_mode(*scales) != self.mode:
            raise ValueError(f"scales {scales} are not of guidance mode {self.mode!r}; make another VideoSampler")
        return tuple(np.float32(scale) for scale in scales)

    def _prepare_fn(self, params, references, masks):
        """What is the same for the whole video: ReferenceNet's features and the Face Locator's map."""
        features = None
        if self.emo.config.model.reference_attention != "off":
            latents = self.emo.encode(params, references)[:, None]
            features = self.emo.reference_features(params, latents)
        location = self.emo.location(params, masks)
        if "locator" in self.off and location is not None:
            location = jnp.zeros_like(location)
        return features, location

    def _segment_fn(self, params, known, carry, inputs, scales):
        sound, speed, key, first_clip = inputs
        clip, clips = self.emo.config.clip, self.config.clips
        heard = self.emo.audio_features(params, sound, clips * clip.frames + 2 * clip.audio_window)
        per_clip = (
            _windows(heard, clips, clip.frames, clip.audio_window),
            _windows(speed, clips, clip.frames, clip.audio_window),
            clip_keys(key, first_clip, clips),
        )
        return scan_clips(functools.partial(self._clip, params, known, scales), carry, per_clip)

    def _clip(self, params, known, scales, carry, inputs):
        (features, location), (motion, has_motion), (heard, speed, key) = known, carry, inputs
        emo, size = self.emo, motion.shape[0]
        if "motion" in self.off:
            has_motion = jnp.zeros_like(has_motion)
        conditions = Conditions(
            reference=features,
            motion=mask_features(emo.reference_features(params, motion), has_motion) if motion.shape[1] else None,
            audio=emo.audio_tokens(params, heard),
            speed=None if "speed" in self.off else emo.speed_features(params, speed),
            location=location,
        )
        present = [jnp.full(size, name not in self.off) for name in ("reference", "audio")]
        conditions = switch(conditions, *present)
        noise_key, solver_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (size, emo.config.clip.frames, *emo.latent_shape))
        guided = guided_denoiser(emo, params, conditions, self.mode, scales)
        return sample(guided, self._schedule, self._solver, noise, self._timesteps, solver_key)

    def _decode_fn(self, params, latents):
        """Frames uint8 (B, K * f, H, W, 3) of latents (K, B, f, h, w, c), in equal groups."""
        clips, size, per = latents.shape[:3]
        count, pixels = clips * per, size * math.prod(self.emo.config.clip.image_size)
        most = _DECODED_PIXELS * (1 if self.mesh is None else self.mesh.shape["frame"]) // pixels
        group = max(n for n in range(1, count + 1) if count % n == 0 and n <= max(1, most))
        latents = jnp.moveaxis(latents, 0, 1).reshape(size, count // group, group, *latents.shape[3:])
        frames = jax.lax.map(functools.partial(self.emo.decode, params), jnp.moveaxis(latents, 1, 0))
        return jnp.moveaxis(frames, 0, 1).reshape(size, count, *frames.shape[3:])


def guided_denoiser(emo, params, conditions, mode, scales):
    """(x (B, f, h, w, c), t (B,)) -> the Backbone's prediction under the conditions, guided (diffusion.guidance)."""
    passes = len(PASSES[mode])
    tiled = jax.tree.map(lambda a: jnp.tile(a, (passes,) + (1,) * (a.ndim - 1)), conditions)

    def denoise(x, t, reference_on, audio_on):
        return emo.denoise(params, x, t, switch(tiled, reference_on, audio_on))

    return guide(denoise, mode, *scales)


def mesh_for(mode, frames, devices=None):
    """The mesh that shares a video's work: guidance's passes over data, a clip's frames over frame. None: one device.

    As many devices as divide the passes of the guidance mode and the clip's frames without rest; others stay idle.
    """
    devices = jax.local_devices() if devices is None else devices
    passes = len(PASSES[mode])
    shapes = [(d, f) for d in range(1, passes + 1) for f in range(1, frames + 1) if not passes % d and not frames % f]
    data, frame = max((math.prod(s), *s) for s in shapes if math.prod(s) <= len(devices))[1:]
    used = devices[: data * frame]
    return make_mesh(data=data, frame=frame, devices=used) if len(used) > 1 else None


def _windows(values, clips, frames, m):
    """Cuts (B, K * f + 2m, ...) into the clips' overlapping windows (K, B, f + 2m, ...)."""
    return jnp.stack([values[:, i * frames : (i + 1) * frames + 2 * m] for i in range(clips)])
