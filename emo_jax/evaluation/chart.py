"""Bar charts of a sweep: one panel for each measure, one bar for each variant."""

import math
import os

from emo_jax.files import atomic_write


def save_bars(path: str | os.PathLike, panels: dict[str, dict[str, float | None]]) -> None:
    """Writes a PNG with one panel of horizontal bars for each measure.

    Args:
        path: the file to write; it appears only once it is complete.
        panels: {measure: {variant: value}}. A value that is None or not finite gets a label but no bar.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [len(bars) + 1 for bars in panels.values()]
    figure = Figure(figsize=(8, 0.35 * sum(rows) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)  # pyplot would keep the figure alive and choose a backend for the entire process
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=rows)[:, 0]
    for axis, (measure, bars) in zip(axes, panels.items(), strict=True):
        lengths = [value if _is_finite(value) else 0.0 for value in bars.values()]
        drawn = axis.barh(range(len(bars)), lengths, tick_label=list(bars))
        axis.bar_label(drawn, ["-" if value is None else f"{value:.3f}" for value in bars.values()], padding=4)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.set_title(measure, loc="left")
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=100)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
