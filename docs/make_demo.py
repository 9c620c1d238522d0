"""Makes docs/demo.webp, the moving picture of the README, from the video that `emo demo` writes.

emo demo -o out/demo.mp4
python docs/make_demo.py out/demo.mp4 docs/demo.webp
"""

import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

ASSETS = Path(__file__).parents[1] / "emo_jax" / "assets"
SIDE, WAVE, GAP = 256, 48, 8
"""Side of each picture, height of the waveform and gap between the parts, in pixels."""
WHITE, GREY, BLUE = (255, 255, 255), (190, 190, 190), (40, 90, 200)


def read_frames(path: str) -> tuple[list[Image.Image], float]:
    """Returns the frames of a video and its frame rate."""
    with av.open(path) as container:
        rate = float(container.streams.video[0].average_rate)
        return [frame.to_image() for frame in container.decode(video=0)], rate


def read_peaks(path: Path, columns: int) -> np.ndarray:
    """Returns the peak level of `columns` equal pieces of a mono 16-bit WAV file, float (columns,) in [0, 1]."""
    samples = np.frombuffer(path.read_bytes()[44:], "<i2").astype(float)
    peaks = np.array([np.abs(piece).max() for piece in np.array_split(samples, columns)])
    return peaks / peaks.max()


def compose(portrait: Image.Image, frame: Image.Image, peaks: np.ndarray, played: float) -> Image.Image:
    """Draws portrait, frame and waveform as one picture; `played` is the fraction of the voice heard so far."""
    width, middle = 2 * SIDE + GAP, SIDE + GAP + WAVE // 2
    picture = Image.new("RGB", (width, SIDE + GAP + WAVE), WHITE)
    for left, part in ((0, portrait), (SIDE + GAP, frame)):
        picture.paste(part.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, 0))
    draw = ImageDraw.Draw(picture)
    for index, peak in enumerate(peaks):
        x, reach = index * width // len(peaks), max(1, round(peak * WAVE / 2) - 1)
        draw.line((x, middle - reach, x, middle + reach), BLUE if index < played * len(peaks) else GREY, width=2)
    return picture


def main(source: str, target: str) -> None:
    """Writes an animated WebP of 12.5 frames per second."""
    frames, rate = read_frames(source)
    portrait = Image.open(ASSETS / "portrait.png")
    peaks = read_peaks(ASSETS / "voice.wav", columns=(2 * SIDE + GAP) // 4)
    pictures = [compose(portrait, frames[i], peaks, i / len(frames)) for i in range(0, len(frames), 2)]
    options = dict(duration=round(2000 / rate), loop=0, quality=70, method=6)
    pictures[0].save(target, save_all=True, append_images=pictures[1:], **options)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
