"""Makes docs/styles.webp: rendered people of several styles, animated by the bundled weights.

python docs/make_styles.py docs/styles.webp

Needs the extra `people` and the packages that docs/data.md names.
"""

import sys

import numpy as np
from PIL import Image

from emo_jax import EmoPipeline
from emo_jax.generation.inputs import ASSETS
from emo_jax.media.audio import load_audio
from emo_jax.synthetic.people.renderer import Pose
from emo_jax.synthetic.people.world import set_scene

PEOPLE = {"plain": 72, "paint": 60, "anime": 93}
"""Look of a person, and their number among the held-out ones."""
SIDE, SECONDS = 256, 4.5


def portrait(number: int) -> np.ndarray:
    """Renders a held-out person at rest, (512, 512, 3) uint8."""
    scene = set_scene((1 << 24) + number, 512)
    return scene.look(scene.studio.render(Pose())[0])


def main(target: str) -> None:
    """Writes an animated WebP of 12.5 frames per second, the people side by side."""
    voice = load_audio(ASSETS / "voice.wav")[: round(16000 * SECONDS)]
    pipe = EmoPipeline.from_pretrained("small")
    videos = [pipe(portrait(number), voice).frames[::2] for number in PEOPLE.values()]
    size = len(videos) * SIDE, SIDE
    rows = [Image.fromarray(np.concatenate(frames, axis=1)) for frames in zip(*videos, strict=True)]
    pictures = [row.resize(size, Image.Resampling.LANCZOS) for row in rows]
    pictures[0].save(target, save_all=True, append_images=pictures[1:], duration=80, loop=0, quality=70, method=6)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
