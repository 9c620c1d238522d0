"""Draws docs/images/architecture.png: the networks, and where the paper describes them.

python docs/make_architecture.py docs/images/architecture.png
"""

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.patches import FancyBboxPatch  # noqa: E402

INPUT, NETWORK, LAYER, OUTPUT = "#e8e8e8", "#cfe0f7", "#ffffff", "#d8efd3"
# name: (x, y, width, height, color, text)
BOXES = {
    "portrait": (0, 8.1, 2.2, 0.9, INPUT, "portrait"),
    "motion": (0, 6.6, 2.2, 0.9, INPUT, "n motion frames,\nlatents"),
    "voice": (0, 5.1, 2.2, 0.9, INPUT, "voice, 16 kHz"),
    "speed": (0, 3.6, 2.2, 0.9, INPUT, "head speed,\ndegrees per frame"),
    "box": (0, 2.1, 2.2, 0.9, INPUT, "face region\nof the clip"),
    "noise": (0, 0.6, 2.2, 0.9, INPUT, "noise of f frames"),
    "vae": (3.0, 8.1, 1.6, 0.9, NETWORK, "VAE encoder\n(3.1)"),
    "reference": (5.2, 6.6, 2.3, 2.4, NETWORK, "ReferenceNet (3.2)\nportrait: per video,\nmotion: per clip"),
    "audio": (3.0, 5.1, 4.5, 0.9, NETWORK, "wav2vec 2.0, window of 2m + 1\nframes, audio projector (3.2)"),
    "buckets": (3.0, 3.6, 4.5, 0.9, NETWORK, "speed buckets and encoder (3.2)"),
    "locator": (3.0, 2.1, 4.5, 0.9, NETWORK, "Face Locator (3.2)"),
    "backbone": (8.9, 0.6, 3.6, 8.4, NETWORK, ""),
    "refattn": (9.2, 7.3, 3.0, 0.8, LAYER, "reference-attention"),
    "audattn": (9.2, 5.15, 3.0, 0.8, LAYER, "audio-attention"),
    "temporal": (9.2, 6.3, 3.0, 0.7, LAYER, "temporal module"),
    "speedlayer": (9.2, 3.65, 3.0, 0.8, LAYER, "speed layer"),
    "convin": (9.2, 0.8, 3.0, 1.5, LAYER, "first convolution"),
    "guidance": (13.3, 6.6, 2.3, 2.4, NETWORK, "guidance, solver:\nscan over the\ndenoising steps\n(4.1)"),
    "decoder": (13.3, 3.9, 2.3, 1.4, NETWORK, "VAE decoder\n(3.1)"),
    "frames": (13.3, 1.5, 2.3, 1.2, OUTPUT, "f frames"),
}
# (from side, to side): the side is l, r, t or b
ARROWS = [
    ("portrait", "r", "vae", None),
    ("motion", "r", "reference", None),
    ("voice", "r", "audio", None),
    ("speed", "r", "buckets", None),
    ("box", "r", "locator", None),
    ("noise", "r", "convin", None),
    ("reference", "r", "refattn", "features"),
    ("reference", "r", "temporal", None),
    ("audio", "r", "audattn", "tokens"),
    ("buckets", "r", "speedlayer", None),
    ("locator", "r", "convin", "added"),
]


def draw(axes: Axes) -> None:
    """Draws all boxes and arrows."""
    for x, y, width, height, color, text in BOXES.values():
        style = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.12", fc=color, ec="#444444")
        axes.add_patch(style)
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)
    axes.text(10.7, 8.55, "Backbone, a UNet (3.2)", ha="center", va="center", fontsize=9, weight="bold")
    axes.text(10.7, 3.0, "at every resolution of the UNet", ha="center", va="center", fontsize=8, style="italic")
    for start, _, end, label in ARROWS:
        x, y, width, height = BOXES[start][:4]
        to_x, to_y, _, to_height = BOXES[end][:4]
        target = min(max(y + height / 2, to_y + 0.2), to_y + to_height - 0.2)
        arrow(axes, (x + width, y + height / 2 if start != "reference" else target), (to_x, target), label)
    arrow(axes, (4.6, 8.55), (5.2, 8.55))
    arrow(axes, (12.5, 8.2), (13.3, 8.2), None)
    arrow(axes, (13.3, 7.2), (12.5, 7.2), None)
    arrow(axes, (14.45, 6.6), (14.45, 5.3), None)
    arrow(axes, (14.45, 3.9), (14.45, 2.7), None)
    axes.plot([14.45, 16.0, 16.0, -0.5, -0.5], [5.9, 5.9, 0.1, 0.1, 7.05], color="#b04020", lw=1.2)
    arrow(axes, (-0.5, 7.05), (0, 7.05), None, "#b04020")
    loop = "the latents of the last n frames are the motion frames of the next clip (4.1): scan over clips"
    axes.text(7, -0.2, loop, ha="center", va="center", fontsize=9, color="#b04020")


def arrow(axes: Axes, start: tuple, end: tuple, label: str | None = None, color: str = "#444444") -> None:
    """Draws an arrow with an optional label above it."""
    axes.annotate("", end, start, arrowprops=dict(arrowstyle="-|>", color=color, lw=1.2, shrinkA=0, shrinkB=0))
    if label:
        axes.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.17, label, ha="center", fontsize=8)


def main(target: str) -> None:
    """Writes the picture."""
    figure, axes = plt.subplots(figsize=(13, 7.6))
    draw(axes)
    axes.set_xlim(-0.7, 16.2)
    axes.set_ylim(-0.5, 9.2)
    axes.axis("off")
    figure.savefig(target, dpi=110, bbox_inches="tight", facecolor="white")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
