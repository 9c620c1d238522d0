"""Sound: of any container at 16 kHz mono, as a WAV file, and the windows of it that belong to video frames.

Every place that turns frames into samples or back uses the functions below, in exact rational arithmetic, so that
training, sampling and the written file agree on where a frame's sound lies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def open_media(path: str | os.PathLike):
    """An open PyAV container for a local file, or ValueError (one line) if there is none that FFmpeg can read."""
    import av

    file = Path(path)
    if file.is_dir():
        raise ValueError(f"{path} is a directory; give an audio or video file")
    if not file.is_file():
        raise ValueError(f"{path} does not exist; give the path of an audio or video file")
    if not file.stat().st_size:
        raise ValueError(f"{path} is empty (0 bytes); export or download it again")
    try:
        # Absolute, so that a colon in the name is no protocol; files only, so that a playlist cannot reach the network.
        return av.open(os.path.abspath(file), options={"protocol_whitelist": "file"})
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{path} cannot be read as audio or video ({reason}): cut off, or no media file; convert it to WAV or MP4"
        ) from error


def decode_packets(container, stream, path) -> Iterator:
    """Decoded frames of one stream; damaged packets are skipped, a file that is mostly damage is a ValueError."""
    import av

    good = bad = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except av.error.FFmpegError:  # the file breaks off inside a packet
            break
        try:
            for frame in packet.decode():
                good += 1
                yield frame
        except av.error.EOFError:
            break
        except av.error.FFmpegError:
            bad += 1
    if bad > good:
        raise ValueError(f"{path} is damaged: {bad} packets could not be decoded, {good} could; export it again")
