"""Draws people with OpenGL, on the processor where there is no graphics card (Mesa's llvmpipe through EGL)."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from emo_jax.synthetic.people import shaders
from emo_jax.synthetic.people.clothes import make_clothes, paint_cloth
from emo_jax.synthetic.people.geometry import Camera, Head, follow_weight, head_matrix, neck_weight, vertex_normals
from emo_jax.synthetic.people.hair import Strands, grow_beard, grow_hair, grow_lashes
from emo_jax.synthetic.people.props import Solid, join, make_props
from emo_jax.synthetic.people.skin import cylinder_uv, paint_skin

SHADOW_SIZE = 384
NEEDS = "rendered people need OpenGL: pip install moderngl (extra: people); apt-get install libegl1 libgl1-mesa-dri"


@dataclass(frozen=True)
class Light:
    """A key light with shadows, a fill light without, and light from above and below. Colours are linear RGB."""

    key_dir: tuple[float, float, float] = (0.4, 0.5, 0.8)
    key_colour: tuple[float, float, float] = (1.15, 1.1, 1.02)
    fill_dir: tuple[float, float, float] = (-0.8, 0.1, 0.6)
    fill_colour: tuple[float, float, float] = (0.22, 0.24, 0.28)
    sky: tuple[float, float, float] = (0.34, 0.36, 0.4)
    ground: tuple[float, float, float] = (0.22, 0.2, 0.19)


@dataclass(frozen=True)
class Pose:
    """One frame of a person.

    Attributes:
        weights: ARKit blend shapes by name, mostly in [0, 1].
        rotation: yaw, pitch and roll of the head in degrees, see `faces.rotation`.
        shift: (3,) movement of the body in decimetres: right, up, towards the camera.
        gaze: degrees that the eyes look to the image's right and up, relative to the head.
    """

    weights: dict[str, float] = field(default_factory=dict)
    rotation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    gaze: tuple[float, float] = (0.0, 0.0)


@functools.cache
def _context() -> Any:
    os.environ.setdefault("LP_NUM_THREADS", "1")  # each worker renders on one core
    try:
        import moderngl  # pyright: ignore[reportMissingImports]

        return moderngl.create_context(standalone=True, backend="egl")  # pyright: ignore[reportArgumentType]
    except Exception as error:  # moderngl raises bare Exceptions
        raise ValueError(f"{NEEDS} ({str(error).splitlines()[0] if str(error) else type(error).__name__})") from error


def check_renderer() -> None:
    """Raises ValueError, which names the packages to install, if OpenGL is missing."""
    _context()


def has_renderer() -> bool:
    """Returns whether OpenGL works on this machine."""
    try:
        return _context() is not None
    except ValueError:
        return False


@functools.cache
def _programs() -> dict[str, Any]:
    make = _context().program
    return {
        "body": make(shaders.MESH_VERTEX, shaders.BODY_FRAGMENT),
        "eye": make(shaders.MESH_VERTEX, shaders.EYE_FRAGMENT),
        "mouth": make(shaders.MESH_VERTEX, shaders.MOUTH_FRAGMENT),
        "mesh shadow": make(shaders.MESH_VERTEX, shaders.DEPTH_FRAGMENT),
        "strand": make(shaders.STRAND_VERTEX, shaders.STRAND_FRAGMENT),
        "strand shadow": make(shaders.STRAND_VERTEX, shaders.DEPTH_FRAGMENT),
        "solid": make(shaders.SOLID_VERTEX, shaders.SOLID_FRAGMENT),
        "picture": make(shaders.PICTURE_VERTEX, shaders.PICTURE_FRAGMENT),
    }


@functools.cache
def _targets(size: int) -> tuple[Any, Any, Any, Any]:
    """Returns the multisampled frame buffer, the one to read, the shadow's, and the shadow map."""
    import moderngl  # pyright: ignore[reportMissingImports]

    context = _context()
    drawn = context.framebuffer(
        [context.renderbuffer((size, size), 4, samples=4)], context.depth_renderbuffer((size, size), samples=4)
    )
    read = context.framebuffer([context.renderbuffer((size, size), 4)])
    shadow_map = context.depth_texture((SHADOW_SIZE, SHADOW_SIZE))
    shadow_map.compare_func = "<="
    shadow_map.filter = (moderngl.LINEAR, moderngl.LINEAR)
    return drawn, read, context.framebuffer(depth_attachment=shadow_map), shadow_map


@functools.cache
def _noise_picture() -> np.ndarray:
    """Returns a noise (256, 256, 1) uint8 that tiles."""
    rng = np.random.default_rng(0)
    layers = [
        np.tile(rng.random((n, n)), (2, 2)).repeat(512 // (2 * n), 0).repeat(512 // (2 * n), 1) for n in (64, 128, 256)
    ]
    return ((np.mean(layers, 0)[:256, :256, None] * 1.6 - 0.3).clip(0, 1) * 255).astype(np.uint8)


class _StrandBuffers:
    def __init__(self, strands: Strands):
        context, count, steps = _context(), *strands.points.shape[:2]
        self.strands = strands
        corner = np.arange(count * steps).reshape(count, steps) * 2
        a, b = corner[:, :-1].reshape(-1), corner[:, 1:].reshape(-1)
        triangles = np.stack([a, a + 1, b, b, a + 1, b + 1], 1).astype(np.int32)
        along = np.broadcast_to(np.linspace(0, 1, steps, dtype=np.float32), (count, steps))
        random = np.broadcast_to(strands.random[:, None], (count, steps))
        look = np.stack([along, random, strands.occlusion], -1)
        static = np.concatenate(
            [strands.tangents, strands.outward, look, strands.follow[..., None], strands.width[..., None]], -1
        )
        both = np.repeat(static[:, :, None], 2, 2)
        across = np.broadcast_to(np.array([-1, 1], np.float32)[:, None], (count, steps, 2, 1))
        self.static = context.buffer(np.concatenate([both, across], -1).astype("f4").tobytes())
        self.moving = context.buffer(np.repeat(strands.points[:, :, None], 2, 2).astype("f4").tobytes())
        index = context.buffer(triangles.tobytes())
        self.shadow_vertices = triangles.size // 2 // 3 * 3  # half of the strands, the outer ones, throw the shadow
        content = [
            (self.moving, "3f", "pos"),
            (self.static, "3f 3f 3f 1f 1f 1f", "tangent", "outward", "look", "follow", "width", "across"),
        ]
        self.drawn = context.vertex_array(_programs()["strand"], content, index, skip_errors=True)
        self.shadow = context.vertex_array(_programs()["strand shadow"], content, index, skip_errors=True)

    def move(self, displacement: np.ndarray) -> None:
        """Moves strands with the skin: `displacement` (V, 3) of the head's vertices."""
        strands = self.strands
        offset = (displacement[strands.roots] * strands.shares[..., None]).sum(1)
        self.moving.write(np.repeat((strands.points + offset[:, None])[:, :, None], 2, 2).astype("f4").tobytes())


class Studio:
    """One person before a camera, with light and background; `render` draws a pose."""

    def __init__(self, head: Head, light: Light, camera: Camera, background: np.ndarray, size: int, toon: float = 0.0):
        self.head, self.light, self.camera, self.size, self.toon = head, light, camera, size, toon
        context, heads = _context(), head.heads
        corner = heads.corner_vertex
        rest = heads.rest[corner]
        uv = cylinder_uv(rest)
        middle = uv[heads.triangles].mean(1)
        seam = np.abs(uv[heads.triangles][:, :, 0] - middle[:, None, 0]).max(1) > 0.4
        triangles = heads.triangles[~seam]
        part = heads.corner_part[triangles[:, 0]]
        shade = heads.occlusion[corner]
        static = np.column_stack([rest, heads.corner_uv, uv, neck_weight()[corner], shade])
        self._corner = corner
        self._static = context.buffer(static.astype("f4").tobytes())
        self._moving = context.buffer(reserve=len(corner) * 24)
        content = [
            (self._moving, "3f 3f", "pos", "nor"),
            (self._static, "3f 2f 2f 1f 1f", "rest", "uv", "skin_uv", "follow", "shade"),
        ]

        def drawn(program: str, *parts: int):
            index = context.buffer(triangles[np.isin(part, parts)].astype(np.int32).tobytes())
            return context.vertex_array(_programs()[program], content, index, skip_errors=True)

        self._body, self._body_shadow, self._eyes = drawn("body", 0), drawn("mesh shadow", 0), drawn("eye", 1, 2)
        self._mouth = [drawn("mouth", number) for number in (3, 4, 5)]
        self._hair = [_StrandBuffers(strands) for strands in [grow_hair(head)] if strands is not None]
        self._attached = [
            _StrandBuffers(strands) for strands in (grow_beard(head), grow_lashes(head)) if strands is not None
        ]
        worn = (
            join(make_props(head), lambda points: points[:, 1] > head.pivot[1]),
            join(make_clothes(head), follow_weight),
        )
        self._solids = [self._solid(solid) for solid in worn if solid is not None]
        self._skin = self._texture(paint_skin(head.person), 4)
        self._masks = self._texture(heads.masks, 4)
        self._background = self._texture(background, 3)
        self._cloth = self._texture(paint_cloth(head.person), 3)
        self._noise = self._texture(_noise_picture(), 1)
        square = context.buffer(np.array([-1, -1, 1, -1, -1, 1, 1, 1], "f4").tobytes())
        self._picture = context.vertex_array(_programs()["picture"], [(square, "2f", "corner")])

    def _solid(self, solid: Solid) -> Any:
        context = _context()
        content = np.column_stack([solid.points, solid.normals, solid.tint, solid.follow])
        buffer, index = context.buffer(content.astype("f4").tobytes()), context.buffer(solid.triangles.tobytes())
        return context.vertex_array(
            _programs()["solid"], [(buffer, "3f 3f 3f 1f", "pos", "nor", "tint", "follow")], index
        )

    def _texture(self, image: np.ndarray, channels: int) -> Any:
        import moderngl  # pyright: ignore[reportMissingImports]

        texture = _context().texture(image.shape[1::-1], channels, np.ascontiguousarray(image).tobytes())
        texture.build_mipmaps()
        texture.filter = (moderngl.LINEAR_MIPMAP_LINEAR, moderngl.LINEAR)
        return texture

    def render(self, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
        """Returns the picture (size, size, 3) uint8 and the vertices (V, 3) before the head turned."""
        import moderngl  # pyright: ignore[reportMissingImports]

        context, head = _context(), self.head
        vertices = head.deform(pose.weights)
        normals = vertex_normals(vertices)
        self._moving.write(np.hstack([vertices[self._corner], normals[self._corner]]).astype("f4").tobytes())
        for strands in self._attached:
            strands.move(vertices - head.rest)
        drawn, read, shadow, shadow_map = _targets(self.size)
        turn = head_matrix(np.array(pose.rotation))
        light = self._shadow_matrix()
        self._set({"turn": turn, "shift": pose.shift, "shadow_matrix": light, "project": light}, shadowed=True)
        context.enable(moderngl.DEPTH_TEST)
        shadow.use()
        shadow.clear()
        self._body_shadow.render()
        for strands in self._hair:
            strands.shadow.render(vertices=strands.shadow_vertices)
        drawn.use()
        drawn.clear(0, 0, 0, 1, depth=1.0)
        self._set(
            {
                "turn": turn,
                "shift": pose.shift,
                "project": self.camera.matrix(),
                "parted": float(np.clip(head.gap(vertices) / 0.06, 0.15, 1)),
                **self._gaze(pose),
            }
        )
        self._background.use(3)
        _programs()["picture"]["picture"].value = 3
        context.disable(moderngl.DEPTH_TEST)
        self._picture.render(moderngl.TRIANGLE_STRIP)
        context.enable(moderngl.DEPTH_TEST)
        shadow_map.use(0)
        self._skin.use(1)
        self._masks.use(2)
        self._cloth.use(4)
        self._noise.use(5)
        person = head.person
        for strands in self._hair:  # in front first: what they hide costs little
            self._strand_colour(person.hair, 1.0)
            strands.drawn.render()
        self._body.render()
        self._eyes.render()
        for solid in self._solids:
            solid.render()
        for kind, mouth in enumerate(self._mouth):
            _programs()["mouth"]["kind"].value = kind
            mouth.render()
        for strands in self._attached:
            beard = strands is self._attached[0] and len(self._attached) > 1
            self._strand_colour(person.hair * 0.9 if beard else np.array([0.05, 0.04, 0.04]), 0.3 if beard else 0.0)
            strands.drawn.render()
        context.copy_framebuffer(read, drawn)
        image = np.frombuffer(read.read(components=3), np.uint8).reshape(self.size, self.size, 3)[::-1]
        return np.ascontiguousarray(image), vertices

    def _strand_colour(self, colour: np.ndarray, shine: float) -> None:
        program = _programs()["strand"]
        program["colour"].value = tuple(float(c) for c in colour)
        program["shine"].value = shine

    def _gaze(self, pose: Pose) -> dict[str, Any]:
        x, y = np.radians(pose.gaze)
        direction = np.array([np.sin(x) * np.cos(y), np.sin(y), np.cos(x) * np.cos(y)])
        return {"gaze": direction}

    def _shadow_matrix(self) -> np.ndarray:
        """Returns the orthographic view (4, 4) from the key light."""
        ahead = np.array(self.light.key_dir) / np.linalg.norm(self.light.key_dir)
        right = np.cross((0, 1, 0), ahead)
        right /= np.linalg.norm(right)
        rows = np.stack([right / 2.3, np.cross(ahead, right) / 2.3, -ahead / 5])
        matrix = np.eye(4)
        matrix[:3, :3] = rows
        matrix[:3, 3] = rows @ (0, 0.25, 0.6)
        return matrix

    def _set(self, values: dict[str, Any], shadowed: bool = False) -> None:
        head, person, light = self.head, self.head.person, self.light
        key = np.array(light.key_dir) / np.linalg.norm(light.key_dir)
        fill = np.array(light.fill_dir) / np.linalg.norm(light.fill_dir)
        neckline = {"crew": 5.48, "v-neck": 5.42, "collar": 5.55, "scarf": 5.5}.get(person.clothes, 5.6)
        values = {
            "pivot": head.pivot,
            "centre": head.centre,
            "key_dir": key,
            "key_colour": light.key_colour,
            "fill_dir": fill,
            "fill_colour": light.fill_colour,
            "sky": light.sky,
            "ground": light.ground,
            "toon": self.toon,
            "shadow_map": 0,
            "skin": 1,
            "masks": 2,
            "lips": person.lips,
            "iris": person.iris,
            "eye_left": head.eye_centres[0],
            "eye_right": head.eye_centres[1],
            "eye_radius": head.eye_radius,
            "iris_size": 0.5,
            "mouth_z": 1.5,
            "lip_gloss": 0.1 + 0.25 * person.make_up,
            "teeth_tone": 1.0 - 0.25 * person.age,
            "cloth": 4,
            "noise_map": 5,
            "cloth_gap": 0.05,
            "neckline": neckline,
            "neck_v": {"v-neck": 0.45, "collar": 0.2}.get(person.clothes, 0.0),
            **values,
        }
        for name in ("mesh shadow", "strand shadow") if shadowed else ("body", "eye", "mouth", "strand", "solid"):
            program = _programs()[name]
            for key_, value in values.items():
                if key_ in program:
                    uniform = program[key_]
                    array = np.asarray(value, np.float32)
                    uniform.value = (
                        value
                        if array.ndim == 0 and isinstance(value, int)
                        else float(array)
                        if array.ndim == 0
                        else tuple(float(v) for v in (array.T if array.ndim == 2 else array).reshape(-1))
                    )
