"""The table and the JSON file in which an evaluation reports its rows."""

from __future__ import annotations

import json

from emo_jax.evaluation.properties import (
    Row,
)
from emo_jax.files import write_text
from emo_jax.tables import format_table


def write_report(path, rows: list[Row], settings: dict) -> None:
    """Writes report.json: the settings, and each row with its details."""
    write_text(path, json.dumps({"settings": settings, "rows": [row.as_dict() for row in rows]}, indent=1) + "\n")


def table(rows: list[Row]) -> str:
    """The rows as text."""
    header = ("property", "measure", "value", "bar", "", "renders", "control", "value", "bar", "")
    cells = []
    for row in rows:
        sign, held = ("<=" if row.below else ">="), row.control_failed
        cells.append((
            row.property, row.measure, _number(row.value), f"{sign} {row.bar:g}", "pass" if row.passed else "FAIL",
            _number(row.renders), row.control, _number(row.control_value),
            "" if row.control_bar is None else f"{'>' if row.below else '<='} {row.control_bar:.2g}",
            "" if held is None else ("fails, as expected" if held else "DOES NOT FAIL"),
        ))  # fmt: skip
    return format_table(cells, header)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
