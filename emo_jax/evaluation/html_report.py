"""The report of `emo evaluate --videos` as one HTML page: tables, plots over time, and videos side by side."""

from __future__ import annotations

import html
import io
import os
import pathlib
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from emo_jax.files import write_text

PLOTS = {
    "identity: similarity to the first second": ("similarity",),
    "colour of the face (CIELAB)": ("lightness", "a", "b"),
    "sharpness of the face": ("sharpness",),
}
"""{title of a plot: rows of `video_measures.curves`}."""
_STYLE = """
body { font: 15px sans-serif; margin: 2em; max-width: 75em }
table { border-collapse: collapse; margin: 1em 0 }
td, th { border-bottom: 1px solid #ccc; padding: 0.2em 0.7em; text-align: right }
td:first-child, th:first-child, td:last-child, th:last-child { text-align: left }
video, img { max-height: 20em; max-width: 48% }
svg { max-width: 100%; height: auto }
"""
_PLAY = """
for (const section of document.querySelectorAll("section")) {
  const videos = [...section.querySelectorAll("video")];
  videos.slice(0, 1).forEach(first => ["play", "pause", "seeked"].forEach(event => first.addEventListener(event, () => {
    for (const other of videos.slice(1)) {
      if (event === "seeked") other.currentTime = first.currentTime; else other[event]();
    }
  })));
}
"""


def write_html(
    path: pathlib.Path,
    measures: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    median: Mapping[str, float | None],
    distances: Mapping[str, Mapping[str, Any]],
    files: Mapping[str, Sequence[pathlib.Path]],
) -> None:
    """Writes the page. Videos and portraits stay where they are; the page refers to them by relative paths.

    Args:
        path: the file to write.
        measures: {name: meaning}.
        rows: the videos: `name`, `figures`, `curves` and `reason`, as in videos.json.
        median: {name: median over videos}.
        distances: rows of `against` in videos.json; empty without --against.
        files: {name of a video: its file, then its portrait and its counterpart, as far as there are any}.
    """
    measured = [row for row in rows if row["figures"]]
    head = _cells("th", ["measure", *(row["name"] for row in measured), "median", "meaning"])
    body = [
        _cells("td", [name, *(number(row["figures"][name]) for row in measured), number(median[name]), meaning])
        for name, meaning in measures.items()
    ]
    parts = ["<h1>Videos</h1>", _table([head, *body])]
    if distances:
        lines = [
            _cells("td", [name, number(d["value"]), "{} / {}".format(*d["samples"]), d["reason"] or d["source"]])
            for name, d in distances.items()
        ]
        parts += ["<h2>Distances between sets</h2>"]
        parts += [_table([_cells("th", ["distance", "value", "samples", "features"]), *lines])]
    parts += [_section(row, files[row["name"]], path.parent) for row in rows]
    page = "".join([
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Videos</title>",
        f"<style>{_STYLE}</style>", *parts, f"<script>{_PLAY}</script></html>\n",
    ])  # fmt: skip
    write_text(path, page)


def number(value: float | None) -> str:
    """Returns a number with three significant digits, or a dash for None."""
    return "-" if value is None else f"{value:.3g}"


def _section(row: Mapping[str, Any], files: Sequence[pathlib.Path], folder: pathlib.Path) -> str:
    """Returns a video, beside it its portrait and its counterpart, and the plots below."""
    shown = []
    for file in files:
        source = urllib.parse.quote(os.path.relpath(file, folder))
        kind = "img" if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".bmp") else "video controls muted"
        shown.append(f"<{kind} src='{source}'>" + ("</video>" if kind.startswith("video") else ""))
    reason = f"<p>{html.escape(row['reason'])}</p>" if row["reason"] else ""
    plots = curve_plots(row["curves"]) if len(row["curves"].get("second", ())) > 1 else ""
    return f"<section><h2>{html.escape(row['name'])}</h2>{''.join(shown)}{reason}{plots}</section>"


def curve_plots(curves: Mapping[str, Sequence[float | None]]) -> str:
    """Returns SVG with a plot of each row of PLOTS over seconds.

    Args:
        curves: see `video_measures.curves`.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 2.6), layout="constrained")
    FigureCanvasSVG(figure)
    for axis, (title, names) in zip(figure.subplots(1, len(PLOTS)), PLOTS.items(), strict=True):
        for name in names:
            values = [float("nan") if value is None else value for value in curves[name]]
            axis.plot(curves["second"], values, marker=".", label=name)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("s")
        if len(names) > 1:
            axis.legend(fontsize=8)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _cells(tag: str, values: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in values) + "</tr>"


def _table(rows: Sequence[str]) -> str:
    return f"<table>{''.join(rows)}</table>"
