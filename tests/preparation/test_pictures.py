"""From usable and unusable pictures to records of one frame."""

import json

import numpy as np
import pytest
from PIL import Image

from emo_jax.cli import main as cli
from emo_jax.data import records
from emo_jax.faces.boxes import overlap
from emo_jax.faces.detection import find_faces
from emo_jax.media import mp4
from emo_jax.synthetic.head import State
from emo_jax.synthetic.identities import Identity
from emo_jax.synthetic.rendering import render
from tests.data.clips import configs, samples, take
from tests.faces import heads


def test_faces_are_cropped_and_unusable_pictures_are_listed(tmp_path, capsys):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    identity = Identity.sample(heads.PERSON)
    Image.fromarray(render(identity, State(), 160)).save(folder / "good.png")
    Image.fromarray(render(identity, State(roll=9), 160)).save(folder / "sub" / "good.jpg")
    Image.fromarray(np.zeros((160, 160, 3), np.uint8)).save(folder / "black.png")
    (folder / "text.png").write_text("no picture")
    command = ["prepare", "images", "--input", str(folder), "--output", str(tmp_path / "out"), "--faces=haar"]
    assert cli.main([*command, "--size=96", "--min-face=40", "--licence=CC0-1.0"]) in (0, None)
    captured = capsys.readouterr()
    assert "2 records; 2 pictures" in captured.out and "pictures: 4/4" in captured.err
    lines = map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text().splitlines())
    rejected = {line["source"]: line["reason"] for line in lines}
    assert rejected["black.png"] == "no face" and "text.png" in rejected["text.png"]
    source = records.open_records(tmp_path / "out", "train")
    by_name = {record["source"]: record for record in (source[i] for i in range(len(source)))}
    assert set(by_name) == {"good.png", "sub/good.jpg"}
    for record in by_name.values():
        assert mp4.decode_video(record["video"], 0, 1).shape == (1, 96, 96, 3)
        assert record["flags"].split()[:2] == ["no-sound", "roll-only"] and record["licence"] == "CC0-1.0"
        assert record["id"].startswith("good-") and len(record["boxes"]) == 1 and not len(record["audio"])
    picture = mp4.decode_video(by_name["good.png"]["video"], 0, 1)[0]
    assert overlap(find_faces(picture)[0], by_name["good.png"]["boxes"][0]) > 0.6
    for sample in samples(take(2, *configs(tmp_path / "out", frames=1, motion_frames=0), batch_size=2, seed=0)):
        assert sample["mask"].any() and sample["frames"].any()


@pytest.mark.parametrize("options, message", [
    (["--size=127"], "--size is 127"),
    (["--min-face=0"], "--min-face is 0"),
    ([], "a.png: no face"),
])  # fmt: skip
def test_invalid_arguments_fail_with_one_line(tmp_path, capsys, options, message):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    command = ["prepare", "images", "--input", str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]
    assert cli.main([*command, "--faces=haar", *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
