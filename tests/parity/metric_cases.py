"""Random weights in the layouts of the published files, and inputs: FID's Inception, VideoGPT's I3D, SyncNet."""

import pathlib

import numpy as np

RECORDED = pathlib.Path(__file__).parent / "metrics.npz"
NARROW = 8
"""Divisor of all widths in the fast test."""


def inception_shapes(narrow):
    """Returns {convolution: (out, in, height, width)}."""
    n = lambda width: width // narrow  # noqa: E731
    shapes, channels = {}, 3
    for name, width, side in (
        ("Conv2d_1a_3x3", 32, 3), ("Conv2d_2a_3x3", 32, 3), ("Conv2d_2b_3x3", 64, 3), ("Conv2d_3b_1x1", 80, 1),
        ("Conv2d_4a_3x3", 192, 3),
    ):  # fmt: skip
        shapes[name] = (n(width), channels, side, side)
        channels = n(width)

    def chain(block, start, *layers):
        for name, width, sides in layers:
            shapes[f"{block}.{name}"] = (n(width), n(start), *sides)
            start = width
        return start

    one, three, five, across, down = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)
    width = 192
    for block, pool in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        chain(block, width, ("branch1x1", 64, one))
        chain(block, width, ("branch5x5_1", 48, one), ("branch5x5_2", 64, five))
        chain(block, width, ("branch3x3dbl_1", 64, one), ("branch3x3dbl_2", 96, three), ("branch3x3dbl_3", 96, three))
        chain(block, width, ("branch_pool", pool, one))
        width = 224 + pool
    chain("Mixed_6a", width, ("branch3x3", 384, three))
    chain("Mixed_6a", width, ("branch3x3dbl_1", 64, one), ("branch3x3dbl_2", 96, three), ("branch3x3dbl_3", 96, three))
    width = 768
    for block, c in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        chain(block, width, ("branch1x1", 192, one))
        chain(block, width, ("branch7x7_1", c, one), ("branch7x7_2", c, across), ("branch7x7_3", 192, down))
        chain(block, width, *((f"branch7x7dbl_{k}", w, s) for k, w, s in (
            (1, c, one), (2, c, down), (3, c, across), (4, c, down), (5, 192, across))))  # fmt: skip
        chain(block, width, ("branch_pool", 192, one))
    chain("Mixed_7a", width, ("branch3x3_1", 192, one), ("branch3x3_2", 320, three))
    chain("Mixed_7a", width, *((f"branch7x7x3_{k}", 192, s) for k, s in ((1, one), (2, across), (3, down), (4, three))))
    for block, width in (("Mixed_7b", 1280), ("Mixed_7c", 2048)):
        chain(block, width, ("branch1x1", 320, one))
        chain(block, width, ("branch3x3_1", 384, one))
        chain(block, width, ("branch3x3dbl_1", 448, one), ("branch3x3dbl_2", 384, three))
        for name in ("branch3x3_2", "branch3x3dbl_3"):
            chain(block, 384, (f"{name}a", 384, (1, 3)))
            chain(block, 384, (f"{name}b", 384, (3, 1)))
        chain(block, width, ("branch_pool", 192, one))
    return shapes


def i3d_shapes(narrow):
    """Returns {convolution: (out, in, frames, height, width)}."""
    n = lambda width: width // narrow  # noqa: E731
    shapes = {"Conv3d_1a_7x7": (n(64), 3, 7, 7, 7), "Conv3d_2b_1x1": (n(64), n(64), 1, 1, 1)}
    shapes["Conv3d_2c_3x3"] = (n(192), n(64), 3, 3, 3)
    width = 192
    for block, (b0, b1a, b1b, b2a, b2b, b3b) in {
        "3b": (64, 96, 128, 16, 32, 32), "3c": (128, 128, 192, 32, 96, 64), "4b": (192, 96, 208, 16, 48, 64),
        "4c": (160, 112, 224, 24, 64, 64), "4d": (128, 128, 256, 24, 64, 64), "4e": (112, 144, 288, 32, 64, 64),
        "4f": (256, 160, 320, 32, 128, 128), "5b": (256, 160, 320, 32, 128, 128), "5c": (384, 192, 384, 48, 128, 128),
    }.items():  # fmt: skip
        layers = {"b0": (b0, width), "b1a": (b1a, width), "b1b": (b1b, b1a), "b2a": (b2a, width), "b2b": (b2b, b2a)}
        for name, (out, inside) in (layers | {"b3b": (b3b, width)}).items():
            shapes[f"Mixed_{block}.{name}"] = (n(out), n(inside), *((3,) * 3 if name in ("b1b", "b2b") else (1,) * 3))
        width = b0 + b1b + b2b + b3b
    return shapes


def weights(network, narrow):
    """Returns a random state dict in the layout of the published file."""
    rng = np.random.default_rng(5)
    shapes, conv = (inception_shapes(narrow), "conv") if network == "inception" else (i3d_shapes(narrow), "conv3d")
    state = {}
    for name, shape in shapes.items():
        state[f"{name}.{conv}.weight"] = _normal(rng, shape)
        state[f"{name}.bn.weight"] = rng.uniform(0.8, 1.4, shape[0]).astype(np.float32)
        state[f"{name}.bn.bias"] = rng.uniform(-0.3, 0.3, shape[0]).astype(np.float32)
        state[f"{name}.bn.running_mean"] = rng.uniform(-0.1, 0.1, shape[0]).astype(np.float32)
        state[f"{name}.bn.running_var"] = rng.uniform(0.5, 1.5, shape[0]).astype(np.float32)
    if network == "i3d":
        state["logits.conv3d.weight"] = _normal(rng, (400, 1024 // narrow, 1, 1, 1))
        state["logits.conv3d.bias"] = rng.uniform(-0.3, 0.3, 400).astype(np.float32)
    return state


def syncnet_weights(narrow):
    """Returns a random state dict in the layout of syncnet_v2.model."""
    rng = np.random.default_rng(6)
    n = lambda width: width // narrow  # noqa: E731
    lip = ((96, 3, 5, 7, 7), (256, 96, 1, 5, 5), *((256, 256, 1, 3, 3),) * 3, (512, 256, 1, 6, 6))
    sound = ((64, 1, 3, 3), (192, 64, 3, 3), (384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3), (512, 256, 5, 4))
    shapes = {}
    for name, rows in (("netcnnlip", lip), ("netcnnaud", sound)):
        for layer, (out, inside, *sides) in zip((0, 4, 8, 11, 14, 18), rows, strict=True):
            shapes[f"{name}.{layer}"] = (n(out), inside if inside in (1, 3) else n(inside), *sides)
    for name in ("netfclip", "netfcaud"):
        shapes |= {f"{name}.0": (n(512), n(512)), f"{name}.3": (n(1024), n(512))}
    state = {}
    for name, shape in shapes.items():
        state[f"{name}.weight"] = _normal(rng, shape)
        state[f"{name}.bias"] = rng.uniform(-0.3, 0.3, shape[0]).astype(np.float32)
        network, layer = name.split(".")
        if not (network.startswith("netfc") and layer == "3"):
            norm = f"{network}.{int(layer) + 1}"
            for key, low, high in (("weight", 0.8, 1.4), ("bias", -0.3, 0.3), ("running_mean", -0.1, 0.1)):
                state[f"{norm}.{key}"] = rng.uniform(low, high, shape[0]).astype(np.float32)
            state[f"{norm}.running_var"] = rng.uniform(0.5, 1.5, shape[0]).astype(np.float32)
    return state


def syncnet_inputs():
    """Returns faces (7, 224, 224, 3), windows of MFCC features (3, 13, 20), features (2, 40, 24), sound (9000,)."""
    rng = np.random.default_rng(10)
    faces = rng.uniform(0, 2, (7, 224, 224, 3)).astype(np.float32)  # small, so that no activation dominates
    features = rng.standard_normal((2, 40, 24))
    features[1, 4:] = features[0, :-4] + 0.5 * features[1, 4:]  # the sound is 4 frames late
    sound = np.round(rng.standard_normal(9000) * 3000)
    return faces, rng.standard_normal((3, 13, 20)).astype(np.float32), features, sound


def inputs(network, full):
    """Returns images or clips, channels last, in [-1, 1]."""
    if network == "inception":
        shape = (2, 299, 299, 3) if full else (2, 107, 91, 3)
    else:
        shape = (1, 16, 224, 224, 3) if full else (2, 16, 70, 64, 3)
    return np.random.default_rng(9).uniform(-1, 1, shape).astype(np.float32)


def _normal(rng, shape):
    return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
