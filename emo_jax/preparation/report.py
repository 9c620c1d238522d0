"""Reports on the videos of a dataset.

`report.json`, `records.csv` and `rejected.jsonl` are for programs, `report.html` is for people.
"""

from __future__ import annotations

import collections
import csv
import html
import io
import json
import pathlib

import numpy as np

from emo_jax.files import write_text

REPORT_FILE, REJECTED_FILE, PAGE_FILE = "report.json", "rejected.jsonl", "report.html"
TABLE_FILE = "records.csv"
MAX_THUMBNAILS = 200
BINS = 24
QUANTITIES = {
    "seconds": "length of a record in seconds",
    "face_pixels": "height of the face in the source in pixels",
    "speed": "mean head rotation speed in degrees per frame",
    "loudness": "loudness in dB of full scale (root mean square)",
    "sync_offset": "frames by which the sound is late",
    "sync_correlation": "correlation of sound and lips there",
    "sync_confidence": "confidence of this offset",
    "off_screen": "share of the voice during which the lips are still",
    "music": "share of the sound with music",
    "overlap": "share of the sound with two voices at once",
}
COLUMNS = ("id", "source", "frames", *(name for name in QUANTITIES if name != "seconds"), "flags")
"""Columns of `records.csv`."""


def write_report(directory: pathlib.Path, summaries: list[dict], fps: float) -> None:
    """Writes the files of the report.

    `rejected.jsonl` has one line for each video that was rejected or only partly used, with the fields of
    `video_records.Outcome`.

    Args:
        directory: directory of the files.
        summaries: summaries of the shards, see `video_shards.make_shard`.
        fps: frames per second of the videos.
    """
    rows = [row for summary in summaries for row in summary["records"]]
    videos = [video for summary in summaries for video in summary["videos"]]
    rejected = [video for video in videos if video["reason"]]
    lines = "".join(json.dumps(video, ensure_ascii=False) + "\n" for video in rejected)
    write_text(directory / REJECTED_FILE, lines)
    write_text(directory / TABLE_FILE, _table(rows))
    report = make_report(rows, videos, fps)
    write_text(directory / REPORT_FILE, json.dumps(report, indent=1) + "\n")
    write_text(directory / PAGE_FILE, _page(report, rows, rejected))


def _table(rows: list[dict]) -> str:
    """Returns `records.csv`: a line for each record, empty where something cannot be measured."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | {"flags": " ".join(row["flags"])} for row in rows)
    return text.getvalue()


def read_report(directory: pathlib.Path) -> dict:
    """Returns the content of `report.json`."""
    return json.loads((directory / REPORT_FILE).read_text())


def make_report(rows: list[dict], videos: list[dict], fps: float) -> dict:
    """Computes counts and statistics.

    Args:
        rows: report rows of the records.
        videos: outcomes of the videos, as dicts.
        fps: frames per second of the videos.

    Returns:
        The content of `report.json`.
    """
    dropped: collections.Counter[str] = collections.Counter()
    for video in videos:
        dropped.update(video["dropped"])
    values = {name: _values(rows, name) for name in QUANTITIES}
    return dict(
        videos=len(videos),
        videos_rejected=sum(not video["records"] for video in videos),
        records=len(rows),
        records_with_sound=sum(row["sound"] for row in rows),
        hours=round(sum(row["frames"] / row["fps"] for row in rows) / 3600, 4),
        frames_seen=sum(video["frames"] for video in videos),
        frames_kept=sum(row["frames"] for row in rows),
        seconds_dropped={reason: round(count / fps, 2) for reason, count in dropped.most_common()},
        flags=dict(collections.Counter(flag for row in rows for flag in row["flags"]).most_common()),
        statistics={name: _statistics(array) for name, array in values.items() if len(array)},
    )


def _values(rows: list[dict], name: str) -> np.ndarray:
    if name == "seconds":
        return np.array([row["frames"] / row["fps"] for row in rows])
    return np.array([row[name] for row in rows if row[name] is not None], np.float64)


def _statistics(values: np.ndarray) -> dict:
    levels = {"least": 0, "tenth": 0.1, "median": 0.5, "nine_tenths": 0.9, "most": 1}
    quantiles = {name: round(float(np.quantile(values, level)), 4) for name, level in levels.items()}
    return quantiles | {"mean": round(float(values.mean()), 4)}


def _page(report: dict, rows: list[dict], rejected: list[dict]) -> str:
    facts = "".join(
        f"<tr><td>{html.escape(name.replace('_', ' '))}</td><td>{html.escape(_format(value))}</td></tr>"
        for name, value in report.items()
        if name != "statistics"
    )
    rows_shown, rejected_shown = rows[:MAX_THUMBNAILS], rejected[:MAX_THUMBNAILS]
    charts = "".join(_histogram(_values(rows, name), text) for name, text in QUANTITIES.items())
    thumbnails = "".join(
        f'<figure><img src="data:image/jpeg;base64,{row["thumbnail"]}" alt=""><figcaption>{html.escape(row["id"])}<br>'
        f"{html.escape(' '.join(row['flags']))}</figcaption></figure>"
        for row in rows_shown
    )
    reasons = "".join(
        f"<tr><td>{html.escape(video['source'])}</td><td>{html.escape(video['reason'])}</td></tr>"
        for video in rejected_shown
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Records</title><style>
body {{ font: 15px sans-serif; margin: 2em auto; max-width: 70em; }} td {{ padding: 0.1em 1em 0.1em 0; }}
figure {{ display: inline-block; margin: 0.4em; width: 110px; font-size: 10px; overflow-wrap: anywhere; }}
svg {{ margin: 0.5em; }}
</style></head><body>
<h1>Records</h1><table>{facts}</table>
<h2>Distributions over the records</h2>{charts}
<h2>Middle frames ({len(rows_shown)} of {len(rows)})</h2>{thumbnails}
<h2>Rejected ({len(rejected_shown)} of {len(rejected)}; all are in {REJECTED_FILE})</h2><table>{reasons}</table>
</body></html>
"""


def _format(value: dict[str, float] | float) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {count:g}" for name, count in value.items()) or "none"
    return f"{value:g}"


def _histogram(values: np.ndarray, text: str) -> str:
    if not len(values):
        return ""
    counts, edges = np.histogram(values, BINS)
    heights = 96 * counts / counts.max()
    bars = "".join(
        f'<rect x="{12 * k}" y="{100 - height:.1f}" width="11" height="{height:.1f}" fill="#46a">'
        f"<title>{edges[k]:.3g} to {edges[k + 1]:.3g}: {counts[k]}</title></rect>"
        for k, height in enumerate(heights)
    )
    return (
        f'<svg width="{12 * BINS}" height="130" role="img"><title>{html.escape(text)}</title>{bars}'
        f'<text x="0" y="114" font-size="11">{edges[0]:.3g}</text>'
        f'<text x="{12 * BINS}" y="114" font-size="11" text-anchor="end">{edges[-1]:.3g}</text>'
        f'<text x="{6 * BINS}" y="127" font-size="11" text-anchor="middle">{html.escape(text)}</text></svg>'
    )
