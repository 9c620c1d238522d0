"""The formats of written videos: which codecs a file of an ending may hold, and how each of them is encoded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Codec(NamedTuple):
    """How one video codec is encoded.

    Attributes:
        encoder: FFmpeg's name of the encoder.
        crf: default quality; smaller is better and larger in bytes.
        max_crf: worst quality of the encoder.
        preset: default choice between speed and size.
        options: further options of the encoder.
        tag: sample entry in mp4 and mov files; "" for FFmpeg's.
    """

    encoder: str
    crf: int
    max_crf: int
    preset: str
    options: dict[str, str]
    tag: str = ""

    def encoder_options(self, crf: int, preset: str) -> dict[str, str]:
        """Returns the options of the encoder for a quality and a preset."""
        name = "cpu-used" if self.encoder == "libvpx-vp9" else "preset"
        return {"crf": str(crf), name: preset, **self.options}


class Format(NamedTuple):
    """What files of one ending hold.

    Attributes:
        container: FFmpeg's name of the container; "" for pictures.
        codecs: names in CODECS, the default first.
        audio: FFmpeg's name of the encoder of sound, or "" if the format has no sound.
        audio_rates: sample rates of sound in Hz; () for those of `soundtrack.RATES`.
    """

    container: str
    codecs: tuple[str, ...]
    audio: str
    audio_rates: tuple[int, ...] = ()


CODECS = {
    # x264's output varies from run to run with its macroblock tree on.
    "h264": Codec("libx264", 18, 51, "veryfast", {"x264-params": "mbtree=0"}),
    # Apple's players open HEVC only under the tag hvc1.
    "hevc": Codec("libx265", 20, 51, "veryfast", {"x265-params": "log-level=error"}, "hvc1"),
    "av1": Codec("libsvtav1", 26, 63, "8", {}),
    "vp9": Codec("libvpx-vp9", 24, 63, "5", {"b": "0", "deadline": "good", "row-mt": "1"}),
}
"""Video codecs by the name that `--codec` takes."""
FORMATS = {
    ".mp4": Format("mp4", ("h264", "hevc", "av1"), "aac"),
    ".mov": Format("mov", ("h264", "hevc"), "aac"),
    ".webm": Format("webm", ("vp9", "av1"), "libopus", (48000,)),
    ".gif": Format("mp4", ("h264",), ""),  # an mp4 file until it is complete
}
"""Formats of single files by their ending."""


def is_picture_folder(path: str | os.PathLike) -> bool:
    """Returns whether a path names a folder of pictures: it ends in a slash, or is a folder without a known ending."""
    text = os.fspath(path)
    return text.endswith(("/", os.sep)) or (Path(text).suffix.lower() not in FORMATS and os.path.isdir(text))


def find_format(path: str | os.PathLike, codec: str | None = None) -> tuple[Format, str]:
    """Returns the format of a file by its ending, and the name of its video codec.

    Args:
        path: a file to write.
        codec: a name in CODECS; None for the format's default.

    Raises:
        ValueError: if the ending or the codec is unknown, or the format does not hold the codec.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(
            f"{path} does not end in {', '.join(FORMATS)} or a slash (a folder of PNG pictures); rename it"
        )
    form = FORMATS[suffix]
    if codec is not None and codec not in CODECS:
        raise ValueError(f"codec is {codec!r}; expected one of {', '.join(CODECS)}")
    if codec is not None and (codec not in form.codecs or suffix == ".gif"):
        allowed = "no codec" if suffix == ".gif" else " or ".join(form.codecs)
        raise ValueError(f"codec is {codec!r}, but {suffix} files take {allowed}; change one of the two")
    return form, codec or form.codecs[0]
