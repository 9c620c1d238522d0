"""Converts a video file to an animated GIF with one palette, in two passes and bounded memory."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
from av.filter import Graph
from av.video.frame import VideoFrame

MAX_FPS = 50
"""Highest frame rate: players show GIF frames that last less than 2/100 s more slowly."""
_MAX_COMMENT_BLOCK = 255


def convert_to_gif(source: Path, target: Path, comment: str = "") -> None:
    """Writes the frames of a video as a GIF that repeats forever.

    Args:
        source: a video file.
        target: the GIF to write.
        comment: a text that is stored in the file.
    """
    palette = _palette(source)
    with av.open(str(source.absolute())) as old, av.open(str(target.absolute()), "w", format="gif") as new:
        video = old.streams.video[0]
        rate = min(Fraction(video.average_rate or 25), Fraction(MAX_FPS))
        stream = new.add_stream("gif", rate=rate)
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, "pal8"
        graph, (frames, colours) = _graph(video, palette, rate)
        colours.push(palette)
        colours.push(None)
        for frame in _pulled(old.decode(video), frames, graph):
            assert isinstance(frame, VideoFrame)
            new.mux(stream.encode(frame))
        new.mux(stream.encode(None))
    if comment:
        _add_comment(target, comment)


def _palette(source: Path) -> VideoFrame:
    """Returns the 256 colours that suit all frames, as a picture of 16x16 pixels."""
    with av.open(str(source.absolute())) as container:
        video = container.streams.video[0]
        graph = Graph()
        graph.link_nodes(
            graph.add_buffer(template=video),
            graph.add("palettegen", "reserve_transparent=0"),
            graph.add("buffersink"),
        ).configure()
        for frame in container.decode(video):
            graph.push(frame)
        graph.push(None)
        palette = graph.pull()
        assert isinstance(palette, VideoFrame)
        return palette


def _graph(video, palette: VideoFrame, rate: Fraction):
    graph = Graph()
    frames = graph.add_buffer(template=video)
    colours = graph.add_buffer(
        width=palette.width, height=palette.height, format=palette.format, time_base=Fraction(1, 25)
    )
    limit, use, sink = graph.add("fps", f"fps={rate}"), graph.add("paletteuse"), graph.add("buffersink")
    frames.link_to(limit)
    limit.link_to(use, 0, 0)
    colours.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph, (frames, colours)


def _pulled(decoded, frames, graph: Graph):
    """Yields what the graph returns for the decoded frames."""
    for frame in decoded:
        frames.push(frame)
        yield from _ready(graph)
    frames.push(None)
    yield from _ready(graph)


def _ready(graph: Graph):
    while True:
        try:
            yield graph.pull()
        except (BlockingIOError, EOFError):
            return  # PyAV's errors are subclasses of the built-in ones


def _add_comment(path: Path, comment: str) -> None:
    """Inserts a comment extension behind the header and the global colour table (GIF89a, section 24)."""
    data = path.read_bytes()
    flags = data[10]
    end = 13 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
    text = comment.encode("ascii", "replace")
    blocks = [text[i : i + _MAX_COMMENT_BLOCK] for i in range(0, len(text), _MAX_COMMENT_BLOCK)]
    extension = b"\x21\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\x00"
    path.write_bytes(data[:end] + extension + data[end:])
