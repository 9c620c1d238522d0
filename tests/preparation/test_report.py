"""Reports on kept and rejected videos."""

import csv
import json
from html.parser import HTMLParser

from emo_jax.preparation import report

MEASURES = ("sync_offset", "sync_correlation", "sync_confidence", "off_screen", "music", "overlap")
"""The names of the columns that hold measurements of the sound."""


def row(name, frames=250, loudness=-20.0, speed=0.5, flags=("roll-only",)):
    return dict(
        id=name,
        source=f"{name}.mp4",
        span=[0, frames / 25],
        frames=frames,
        fps=25.0,
        sound=loudness is not None,
        face_pixels=120.0,
        speed=speed,
        loudness=loudness,
        **dict.fromkeys(MEASURES, None if loudness is None else 0.25),
        flags=list(flags),
        thumbnail="QUJD",
    )


def video(name, frames, records, dropped=(), reason=""):
    return dict(source=name, frames=frames, records=records, dropped=dict(dropped), reason=reason)


SUMMARIES = [
    dict(
        records=[row("a", 200), row("b", 300, None, 1.5, ("roll-only", "no-sound"))],
        videos=[video("a.mp4", 520, 2, {"no face": 20})],
    ),
    dict(
        records=[],
        videos=[
            video("<i>.mp4", 50, 0, {"no face": 30, "face too dark": 20}, "no usable span"),
            video("c.txt", 0, 0, (), "c.txt cannot be read"),
        ],
    ),
]


class Tags(HTMLParser):
    """Counts the tags of a page and asserts that each is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_counts_and_statistics(tmp_path):
    report.write_report(tmp_path, SUMMARIES, 25)
    result = report.read_report(tmp_path)
    assert (result["videos"], result["videos_rejected"], result["records"]) == (3, 2, 2)
    assert result["records_with_sound"] == 1 and result["hours"] == round(20 / 3600, 4)
    assert (result["frames_seen"], result["frames_kept"]) == (570, 500)
    assert result["seconds_dropped"] == {"no face": 2.0, "face too dark": 0.8}
    assert result["flags"] == {"roll-only": 2, "no-sound": 1}
    assert result["statistics"]["seconds"]["mean"] == 10 and result["statistics"]["speed"]["most"] == 1.5
    assert result["statistics"]["loudness"]["median"] == -20  # of the record with sound


def test_rejected_videos_are_listed(tmp_path):
    report.write_report(tmp_path, SUMMARIES, 25)
    lines = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [line["source"] for line in lines] == ["<i>.mp4", "c.txt"]
    assert lines[0]["dropped"] == {"no face": 30, "face too dark": 20}


def test_table_of_records(tmp_path):
    report.write_report(tmp_path, SUMMARIES, 25)
    first, second = csv.DictReader((tmp_path / "records.csv").read_text().splitlines())
    assert (first["id"], first["frames"], first["loudness"], first["music"]) == ("a", "200", "-20.0", "0.25")
    assert second["flags"] == "roll-only no-sound" and not any(second[name] for name in ("loudness", *MEASURES))


def test_html_page(tmp_path):
    report.write_report(tmp_path, SUMMARIES, 25)
    text = (tmp_path / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert not tags.open and tags.seen.count("img") == 2 and tags.seen.count("svg") == len(report.QUANTITIES)
    assert "&lt;i&gt;.mp4" in text and "<i>" not in text


def test_report_without_records(tmp_path):
    report.write_report(tmp_path, SUMMARIES[1:], 25)
    assert report.read_report(tmp_path)["statistics"] == {}
    assert "cannot be read" in (tmp_path / "report.html").read_text()
