"""Bar charts with Pillow: one panel for each measure, one bar for each variant."""

from PIL import Image, ImageDraw, ImageFont

from emo_jax.files import whole

_WIDTH, _LABEL, _LINE, _GAP = 760, 220, 24, 16
_INK, _BAR = (30, 30, 30), (70, 120, 180)


def save_bars(path, panels):
    """Writes a PNG.

    Args:
        panels: {title: {name: value}}; a value that is None or not finite gets no bar.
    """
    height = _GAP + sum(_LINE * (len(bars) + 1) + _GAP for bars in panels.values())
    image = Image.new("RGB", (_WIDTH, height), "white")
    draw, font, y = ImageDraw.Draw(image), ImageFont.load_default(size=15), _GAP
    for title, bars in panels.items():
        draw.text((_GAP, y), title, _INK, font)
        y += _LINE
        known = [abs(value) for value in bars.values() if _drawn(value)]
        scale = (_WIDTH - _LABEL - 6 * _GAP) / max([*known, 1e-9])
        for name, value in bars.items():
            draw.text((2 * _GAP, y), name, _INK, font)
            length = round(abs(value) * scale) if _drawn(value) else 0
            draw.rectangle((_LABEL, y + 3, _LABEL + length, y + _LINE - 5), _BAR)
            draw.text((_LABEL + length + 6, y), f"{value:.3f}" if value is not None else "-", _INK, font)
            y += _LINE
        y += _GAP
    with whole(path) as partial:
        image.save(partial, format="PNG")


def _drawn(value):
    return value is not None and abs(value) < float("inf")
