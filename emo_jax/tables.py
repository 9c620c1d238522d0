"""Plain-text tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(rows: Sequence[Sequence[str]], header: Sequence[str] = (), align: str = "", indent: str = "") -> str:
    """Formats rows of cells as columns that are two spaces apart.

    Callers format numbers themselves and print the result. For example, `evaluation/report.py` passes a header,
    `planning/report.py` passes `align="<>"` and an indent, and `evaluation/sweep.py` passes the rows of its CSV file.

    Args:
        rows: the cells of each row. All rows have the same number of cells.
        header: the titles of the columns; empty for a table without a header.
        align: one character per column, "<" (left) or ">" (right). Columns past its end are aligned left.
        indent: text put in front of each line.

    Returns:
        The lines, joined by newlines, without trailing spaces.

    Raises:
        ValueError: two rows differ in their number of cells.
    """
    lines = [header, *rows] if header else list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = align.ljust(len(widths), "<")
    text = []
    for line in lines:
        cells = (f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True))
        text.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(text)
