"""Videos, records and latents that several test files share."""

import pytest

from emo_jax.preparation.prepare import prepare_videos
from tests.faces import heads

SMALL = dict(size=64, min_seconds=1.0, min_face=40.0, workers=1)
"""Options of `prepare_videos` for small and short videos."""


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """A folder with videos of three heads of 30, 35 and 40 frames, and a file that is not a video."""
    folder = tmp_path_factory.mktemp("videos")
    for k in range(3):
        heads.write(folder / f"{k}.mp4", heads.heads(30 + 5 * k), 25, heads.voice(1.2 + 0.2 * k, seed=k))
    (folder / "1b.txt").write_text("no video\n")
    return folder


@pytest.fixture(scope="session")
def prepared(videos, tmp_path_factory):
    """The records of `videos`, made by one process without interruption."""
    output = tmp_path_factory.mktemp("prepared") / "out"
    prepare_videos([str(videos)], str(output), **SMALL)
    return output
