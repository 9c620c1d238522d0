"""Trains the network of lips and voices (`emo_jax.evaluation.lip_voice`) on voices of rendered people.

    python -m emo_jax.synthetic.people.lips --people 3000 -o lips.npz
    python -m emo_jax.evaluation.train_lip_voice --data lips.npz --output lip_voice.safetensors

The loss is InfoNCE (van den Oord et al. 2018): from the lips of a frame, the network must find its moment of the voice
among all other shifts of the same clip. As in real recordings, the sound has room echo and noise, and the lips have
jitter and expressions that the voice does not explain.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from scipy.ndimage import gaussian_filter1d
from scipy.signal import fftconvolve

from emo_jax.evaluation.lip_voice import FPS, Params, embed, init, lip_measures, lip_voice_sync, save_weights
from emo_jax.media.timing import SAMPLE_RATE, cut, window_bounds
from emo_jax.progress import Progress

MAX_SHIFT = 15
"""Largest shift in frames; a voice of three seconds has 75."""
CLIP_SHARPNESS = 4.0
"""Factor of the logits of complete clips: the mean over a clip says more than a single frame."""


def loss_of(params: Params, lips: Float[Array, "batch frames 2"], sound: Float[Array, "batch samples"]) -> Array:
    """Computes the cross entropy of the right shift among all shifts, for single frames and for the clips' means."""
    seen, heard = embed(params["towers"], lips, sound)
    frames, shifts = jnp.arange(MAX_SHIFT, lips.shape[1] - MAX_SHIFT), jnp.arange(-MAX_SHIFT, MAX_SHIFT + 1)
    cosines = jnp.einsum("bfe,bfse->bfs", seen[:, frames], heard[:, frames[:, None] + shifts])
    scale = jnp.exp(params["scale"])
    single = jax.nn.log_softmax(scale * cosines)[..., MAX_SHIFT]
    clips = jax.nn.log_softmax(CLIP_SHARPNESS * scale * cosines.mean(1))[..., MAX_SHIFT]
    return -single.mean() - clips.mean()


def change_sound(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a voice (samples,) in a room and with noise, for some of the draws."""
    if rng.random() < 0.4:
        length = int(SAMPLE_RATE * rng.uniform(0.05, 0.4))
        room = rng.standard_normal(length) * np.exp(-6 * np.arange(length) / length)
        room[0] = rng.uniform(2, 8)
        sound = fftconvolve(sound, room / np.abs(room).max())[: len(sound)]
    if rng.random() < 0.8:
        noise = gaussian_filter1d(rng.standard_normal(len(sound)), rng.uniform(0.2, 6))
        sound = sound + noise * (sound.std() / noise.std() * 10 ** (-rng.uniform(5, 35) / 20))
    return sound.astype(np.float32)


def change_lips(mouth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns lip measures (frames, 2) with jitter, drift and expressions added, and smoothed for some of the draws."""
    mouth = mouth.astype(np.float64)
    mouth[:, 0] = np.maximum(mouth[:, 0], 0) ** rng.uniform(0.6, 1.4)
    if rng.random() < 0.5:
        mouth = gaussian_filter1d(mouth, rng.uniform(0.3, 1.5), axis=0)
    spread, shape = mouth.std(0) + 1e-3, mouth.shape
    for smooth, most in ((0.0, 0.4), (2.5, 1.0), (12.0, 1.0)):  # jitter, expressions, drift
        added = rng.standard_normal(shape)
        added = gaussian_filter1d(added, smooth, axis=0) if smooth else added
        mouth = mouth + spread * rng.uniform(0, most, 2) * added / added.std(0)
    return mouth


def sample(seed: tuple[int, ...], sounds: np.ndarray, mouths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws the lip measures (frames, 2) and the sound of a random voice."""
    rng = np.random.default_rng(seed)
    chosen = int(rng.integers(len(sounds)))
    lips = lip_measures(*change_lips(mouths[chosen], rng).T)
    sound = change_sound(sounds[chosen].astype(np.float32) / 32768, rng)
    return lips, cut(sound, *window_bounds(0, len(lips), FPS))


def train(sounds: np.ndarray, mouths: np.ndarray, steps: int, batch: int, seed: int = 0) -> Params:
    """Returns trained weights.

    Args:
        sounds: (people, samples) int16 at 16 kHz.
        mouths: (people, frames, 2), opening and width of their mouths.
        steps: number of steps.
        batch: voices of a step.
        seed: random seed.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 2e-3, steps // 20, steps), weight_decay=1e-2)
    params = {"towers": init(seed), "scale": jnp.array(2.0)}
    state, loss = optimizer.init(params), jnp.array(0.0)

    @jax.jit
    def step(params: Any, state: Any, lips: Array, sound: Array) -> tuple[Any, Any, Array]:
        value, gradients = jax.value_and_grad(loss_of)(params, lips, sound)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    with Progress(steps, "lips and voices", "step") as progress:
        for number in range(steps):
            drawn = [sample((seed, number, row), sounds, mouths) for row in range(batch)]
            lips, sound = [np.stack([row[k] for row in drawn]) for k in (0, 1)]
            params, state, loss = step(params, state, lips, sound)
            progress.add()
    if not np.isfinite(loss):
        raise FloatingPointError(f"the loss of lips and voices is {loss}; train again with another seed")
    return params["towers"]


def accuracy(params: Params, sounds: np.ndarray, mouths: np.ndarray) -> float:
    """Returns the share of voices whose offset is found to within one frame."""
    voices = zip(sounds.astype(np.float32) / 32768, mouths, strict=True)
    found = [lip_voice_sync(mouth[:, 0], mouth[:, 1], sound, params) for sound, mouth in voices]
    return float(np.mean([sync is not None and abs(sync.offset) <= 1 for sync in found]))


def main(arguments: list[str] | None = None) -> None:
    """Trains, prints the share of held-out voices whose offset is found, and writes the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="file of emo_jax.synthetic.people.lips")
    parser.add_argument("-o", "--output", required=True, help="file for the weights")
    parser.add_argument("--steps", type=int, default=1200, help="number of steps (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="voices of a step (default %(default)s)")
    args = parser.parse_args(arguments)
    with np.load(args.data) as file:
        sounds, mouths, held_out = file["sound"], file["mouth"], file["validation"]
    params = train(sounds[~held_out], mouths[~held_out], args.steps, args.batch, args.seed)
    save_weights(args.output, params)
    share = accuracy(params, sounds[held_out], mouths[held_out])
    print(f"{args.output}: of {held_out.sum()} held-out voices, the offset of {share:.0%} is found within one frame")


if __name__ == "__main__":
    main()
