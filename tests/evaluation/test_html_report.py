"""The page of `emo evaluate --videos`."""

import html.parser
import xml.etree.ElementTree

from emo_jax.evaluation.html_report import curve_plots, write_html

CURVES = dict(
    second=[0, 1, 2], lightness=[50.0, None, 52.0], a=[1.0, 1, 1], b=[2.0, 2, 2], sharpness=[9.0, 8, 7],
    similarity=[1.0, None, 0.9],
)  # fmt: skip


class Reader(html.parser.HTMLParser):
    """Collects the sources of videos and pictures, and the texts of cells."""

    def __init__(self):
        super().__init__()
        self.sources, self.cells, self.inside = [], [], False

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name == "src"]
        self.inside = tag in ("td", "th")

    def handle_data(self, data):
        self.cells += [data] if self.inside else []


def test_the_page_has_tables_plots_and_videos_side_by_side(tmp_path):
    rows = [
        dict(name="a <b>.mp4", figures={"identity": 0.91234}, curves=CURVES, reason=""),
        dict(name="bad.mp4", figures={}, curves={}, reason="cannot be read & measured"),
    ]
    videos, report = tmp_path / "videos", tmp_path / "out"
    report.mkdir()
    files = {
        "a <b>.mp4": [videos / "a <b>.mp4", tmp_path / "faces" / "a <b>.png", tmp_path / "real" / "a <b>.mp4"],
        "bad.mp4": [videos / "bad.mp4"],
    }
    distances = {"fid": dict(value=None, samples=(3, 4), source="frames", reason="needs --inception FILE")}
    write_html(report / "videos.html", {"identity": "similarity"}, rows, {"identity": 0.91234}, distances, files)
    text = (report / "videos.html").read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.sources == [
        "../videos/a%20%3Cb%3E.mp4", "../faces/a%20%3Cb%3E.png", "../real/a%20%3Cb%3E.mp4", "../videos/bad.mp4"
    ]  # fmt: skip
    assert reader.cells[:6] == ["measure", "a <b>.mp4", "median", "meaning", "identity", "0.912"]
    assert "needs --inception FILE" in reader.cells and "3 / 4" in reader.cells and "-" in reader.cells
    assert text.count("<svg") == 1 and "cannot be read &amp; measured" in text
    assert [path.name for path in report.iterdir()] == ["videos.html"]


def test_plots_are_svg_without_the_time_of_writing():
    first = curve_plots(CURVES)
    root = xml.etree.ElementTree.fromstring(first)
    assert root.tag.endswith("svg") and "similarity" in first
    assert "<dc:date>" not in first
