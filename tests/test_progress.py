"""Progress: a bar on a terminal, lines elsewhere."""

import io

from emo_jax.progress import Progress


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch):
    for terminal in (True, False):
        stderr = io.StringIO()
        stderr.isatty = lambda terminal=terminal: terminal
        monkeypatch.setattr("sys.stderr", stderr)
        with Progress(20, "name", "frame") as progress:
            for count in (8, 8, 4):
                progress.add(count)
        told = stderr.getvalue()
        assert "20/20" in told and "name" in told
        assert told.count("\n") == 1 and ("\r" in told) == terminal
