"""The video sampler with overlapping windows, EchoMimic's: all frames are denoised together, a window at a time."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from emo_jax.diffusion.clips import clip_keys
from emo_jax.diffusion.noise import split
from emo_jax.diffusion.sampler import Hold, advance
from emo_jax.diffusion.windows import windows
from emo_jax.generation.guided import Params, Scales, guided_denoiser
from emo_jax.generation.sampler import Array, Inputs, VideoSampler


class WindowSampler(VideoSampler):
    """Samples all frames of a video together, in windows of f frames whose predictions are averaged in each step.

    The device holds one window. Latents and sums of predictions of the video stay in the host's memory: 128 KB for each
    frame of 512x512. Frames come when the last step is done. One program serves every length: a video that is shorter
    than a window is sampled at a window's length, and cut.
    """

    def __init__(self, *args: Any, **fields: Any):
        super().__init__(*args, **fields)
        self._window, self._advance = self._jit(self._window_fn), self._jit(self._advance_fn)
        ts = np.asarray(self._timesteps, np.int32)
        following = np.append(ts[1:], -1) if self._t_nexts is None else self._t_nexts
        self._steps = ts, np.asarray(following, np.int32)

    def compilations(self) -> int:
        """Returns how many programs of windows have been compiled: at most 1 per batch size."""
        return self._window._cache_size()

    def _latents(self, inputs: Inputs, on_window: Callable[[int, int], None] | None) -> Iterator[tuple[Any, int]]:
        """Yields the latents of each segment (K, B, f, h, w, c) and K, after the last step."""
        f, per_segment, steps = self.emo.config.clip.frames, self.frames_per_segment, len(self._steps[0])
        groups = -(-inputs.count // per_segment) * self.config.clips
        keys = [split(key, 2) for key in clip_keys(inputs.key, 0, groups)]
        noise = [np.asarray(self._noise(noise_key, inputs.batch)) for noise_key, _ in keys]
        latents: Any = np.concatenate(noise, axis=1)
        states: list[Any] = [jax.tree.map(np.asarray, self._solver.init(jnp.asarray(x))) for x in noise]
        for step in range(steps):
            places = windows(max(inputs.count, f), f, self.config.overlap, self.config.shift * step)
            sums, seen = np.zeros_like(latents), np.zeros(latents.shape[1], np.float32)
            done = self._predictions(inputs, latents, step, places)
            for number, (frames, prediction) in enumerate(done, 1 + step * len(places)):
                sums[:, frames] += np.asarray(prediction)
                seen[frames] += 1
                if on_window is not None:
                    on_window(number, steps * len(places))
            predictions = sums / np.maximum(seen, 1)[:, None, None, None]  # padding at the end has no window
            for group, (_, solver_key) in enumerate(keys):
                part = np.s_[:, group * f : (group + 1) * f]
                state = latents[part], states[group], predictions[part]
                moved = self._advance(*state, np.int32(step), solver_key, inputs.held)
                latents[part], states[group] = jax.tree.map(np.asarray, moved)
        for first in range(0, latents.shape[1], per_segment):
            segment = latents[:, first : first + per_segment]
            segment = rearrange(segment, "batch (clips frames) h w c -> clips batch frames h w c", frames=f)
            yield segment, self.config.clips

    def _predictions(
        self, inputs: Inputs, latents: np.ndarray, step: int, places: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """Yields (frames, guided prediction) of each window, while the next one is computed."""
        speed, pending = inputs.speed, None
        speeds = np.broadcast_to(speed if speed.ndim == 2 else speed.reshape(-1, 1), (inputs.batch, inputs.count))
        for frames in places:
            speed = speeds[:, np.minimum(frames, inputs.count - 1)]
            features = _features(inputs.audio, frames)
            x, t = latents[:, frames], self._steps[0][step]
            prediction = self._window(self.params, inputs.constants, x, t, features, speed, inputs.scales)
            if pending is not None:
                yield pending
            pending = frames, prediction
        assert pending is not None
        yield pending

    def _window_fn(
        self, params: Params, constants: Any, x: Array, t: Any, features: Array, speed: Array, scales: Scales
    ) -> Array:
        """Computes the guided prediction of a window (B, f, h, w, c)."""
        conditions = self._conditions(params, constants, features, speed)
        guided = guided_denoiser(self.emo, params, conditions, self.mode, scales, **self._guidance)
        return guided(x, jnp.full(x.shape[:1], t)).astype(jnp.float32)

    def _advance_fn(
        self, x: Array, state: Any, prediction: Array, step: Any, key: Any, held: Hold | None
    ) -> tuple[Any, Any]:
        """Moves f frames from a timestep to the next."""
        t, t_next = (jnp.asarray(times)[step] for times in self._steps)
        step_key = split(key, len(self._steps[0]))[step]
        return advance(self._schedule, self._solver, x, state, prediction, t, t_next, step_key, held)


def _features(audio: Callable[[int, int], Any], frames: np.ndarray) -> Array:
    """Returns the audio features of frames; `audio` computes those of consecutive ones from (first, count)."""
    runs = np.split(frames, np.flatnonzero(np.diff(frames) != 1) + 1)
    return np.concatenate([np.asarray(audio(int(run[0]), len(run))) for run in runs], axis=1)


def make_sampler(emo: Any, params: Params | None, sampling: Any, **fields: Any) -> VideoSampler:
    """Returns the sampler of a config's `sampling.strategy`.

    Args:
        emo: the networks.
        params: their parameters.
        sampling: the config's `sampling`.
        **fields: `off` and `mesh`, as `VideoSampler` takes them.

    Raises:
        ValueError: unknown fields, or windows with networks that cannot be sampled in them.
    """
    strategy, clip = sampling.get("strategy", "clips"), emo.config.clip
    if strategy == "clips":
        return VideoSampler(emo, params, sampling, **fields)
    if strategy != "windows":
        raise ValueError(f"sampling.strategy is {strategy!r}; expected 'clips' or 'windows'")
    for name, value, expected, is_right in (
        ("clip.motion_frames", clip.motion_frames, 0, clip.motion_frames == 0),
        ("model.vae.flow_channels", emo.vae.config.flow_channels, 0, not emo.uses_flow),
        ("clip.audio_window", clip.audio_window, 0, clip.audio_window == 0),
        ("model.audio.encoder", emo.config.model.audio.encoder, "another", emo.audio_encoder is not None),
        ("sampling.hold_colors", sampling.get("hold_colors", False), False, not sampling.get("hold_colors", False)),
        ("sampling.overlap", sampling.overlap, f"0 to {clip.frames - 1}", 0 <= sampling.overlap < clip.frames),
    ):
        if not is_right:
            raise ValueError(f"{name} is {value!r}; expected {expected} with sampling.strategy 'windows'")
    return WindowSampler(emo, params, sampling, **fields)
