"""Mesh, placement of parameters and batches, and of activations at a few named places: one table of rules for each."""

import functools
import math
import re

import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import mesh_utils
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from emo_jax.ops.attention import LANES, platform

AXES = ("data", "fsdp", "frame", "tensor")
"""Samples are split over data and fsdp, parameters over fsdp and tensor, a clip over frame, heads over tensor."""

RULES = (
    (r".*(^|/)(attn[12]|\w+_attn)/to_[qkv]/kernel$", "output", "largest"),
    (r".*(^|/)(attn[12]|\w+_attn)/to_out_0/kernel$", "input", "largest"),
    (r".*(^|/)ff/net_0/proj/kernel$", "output", "input"),
    (r".*(^|/)ff/net_2/kernel$", "input", "largest"),
    (r".*(^|/)(conv1|time_emb_proj)/kernel$", "output", "largest"),
    (r".*(^|/)conv2/kernel$", "input", "largest"),
    (r".*(^|/)(kernel|weight_v)$", None, "largest"),
    (r".*(^|/)(bias|scale|weight_g|scaling_factor)$", None, None),
)
"""(parameter path, over tensor, over fsdp) for parameters and optimizer state; the first match decides. It also fits
the path within a resnet, transformer or temporal module: they gather their parameters by it.

Over tensor the kernel's last axis is split ('output') or the one before ('input'), so that what lies between the two,
heads or inner features, stays on its device; over fsdp the largest other axis that the axis' size divides, or the input
first. None: whole. (By outputs, XLA for TPU would not scatter the gradients of GEGLU's wide kernels over 16 chips.)
"""

PLACES = {
    "spatial": (1, 2),
    "temporal": (2,),
    "shared": (),
}
"""Which axis of an activation (B, F, H, W, C) the frame axis splits, the first that it divides, at each named place.

spatial: a layer that works frame by frame; frames, or rows where frames do not divide (ReferenceNet's few).
temporal: a layer that works place by place; rows. shared: what all frames look at; whole.
"""

GATHERED = "gathered"
"""Name of gathered parameters, for policies of jax.checkpoint: they are gathered again in the backward pass."""


# ---- the mesh


def make_mesh(data=-1, fsdp=1, frame=1, tensor=1, dcn_data=1, *, clips=True, devices=None):
    """A mesh of AXES over all devices; -1 takes what the others leave.

    Args:
        dcn_data: how many slices (or, where the platform has none, processes) the data axis spans: they are joined by
            a slow network, which then carries gradients alone.
        clips: False where samples are single frames: the frame axis' devices then take further samples, as data's do.

    Raises:
        ValueError: the axes do not multiply to the number of devices, or the devices lie otherwise.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict(data=data, fsdp=fsdp, frame=frame, tensor=tensor)
    told = "train.mesh is " + ", ".join(f"{name}={size}" for name, size in sizes.items())
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1 or any(size < 1 for size in sizes.values() if size != -1):
        raise ValueError(f"{told}; expected sizes of at least 1, or -1 for one")
    for name in open_axes:
        sizes[name] = max(1, len(devices) // -math.prod(sizes.values()))
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"{told}: {math.prod(sizes.values())} devices, but {len(devices)} are present; set one of them to -1"
        )
    if not clips:
        sizes |= dict(data=sizes["data"] * sizes["frame"], frame=1)
    return Mesh(_grid(tuple(sizes.values()), dcn_data, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _grid(shape, dcn_data, devices):
    """The devices as an array of that shape, neighbours of the network next to each other.

    But those that share samples, along frame and tensor, lie in one process where they can: it feeds them all.
    """
    slices = {getattr(device, "slice_index", None) for device in devices}
    if dcn_data == 1 and len(slices) == 1:
        try:
            grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        except (AssertionError, NotImplementedError):  # some of a TPU's chips, which are no box
            grid = np.array(devices).reshape(shape)
        if _torn(grid):
            by_process = sorted(devices, key=lambda device: (device.process_index, device.id))
            grid = np.array(by_process).reshape(shape)
        return grid
    by_process = None in slices or len(slices) == 1
    groups = len({device.process_index for device in devices}) if by_process else len(slices)
    if dcn_data != groups or shape[0] % dcn_data:
        raise ValueError(
            f"train.mesh.dcn_data is {dcn_data} and data {shape[0]}, but the devices lie in {groups} "
            f"{'processes' if by_process else 'slices'}; set dcn_data to {groups}, and data to a multiple of it"
        )
    inner, outer = (shape[0] // dcn_data, *shape[1:]), (dcn_data, 1, 1, 1)
    options = dict(process_is_granule=by_process, allow_split_physical_axes=True)
    return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, **options)


def _torn(grid):
    """Whether devices that share samples lie in several processes."""
    rows = grid.reshape(-1, math.prod(grid.shape[2:]))
    return any(len({device.process_index for device in row}) > 1 for row in rows)


def check(mesh, config):
    """Checks that a mesh divides what the config's model and batches have.

    Raises:
        ValueError: it does not, or batches have nothing, with the field to change.
    """
    shape, unet, train = mesh.shape, config.model.unet, config.train
    for name in ("batch_size", "accumulate"):
        if train[name] < 1:
            raise ValueError(f"train.{name} is {train[name]}; expected 1 or more")
    if unet.heads % shape["tensor"]:
        raise ValueError(
            f"train.mesh.tensor is {shape['tensor']}, which does not divide model.unet.heads, {unet.heads}; "
            "choose a divisor"
        )
    if config.clip.frames % shape["frame"]:
        raise ValueError(
            f"train.mesh.frame is {shape['frame']}, which does not divide clip.frames, {config.clip.frames}; "
            "choose a divisor"
        )
    parts = shape["data"] * shape["fsdp"] * train.accumulate
    if train.batch_size % parts:
        raise ValueError(
            f"train.batch_size is {train.batch_size}, which does not divide over data x fsdp x train.accumulate = "
            f"{shape['data']} x {shape['fsdp']} x {train.accumulate}; make it a multiple of {parts}"
        )
    if _torn(mesh.devices):
        raise ValueError(
            f"train.mesh has frame x tensor = {shape['frame'] * shape['tensor']} devices share samples, but they lie "
            "in several processes, each of which reads its own; choose a divisor of a process' devices"
        )


# ---- parameters


def parameter_spec(path, shape, fsdp, tensor=1):
    """The PartitionSpec of a parameter, or of optimizer state of the same path and shape, on axes of those sizes.

    Raises:
        ValueError: no rule matches the path, or the tensor axis does not divide what its rule splits.
    """
    rule = next((rule for rule in RULES if re.match(rule[0], path)), None)
    if rule is None:
        raise ValueError(f"no sharding rule matches parameter {path!r}; add a row to sharding.RULES")
    _, over_tensor, over_fsdp = rule
    axes = [None] * len(shape)
    if over_tensor and tensor > 1 and len(shape) > 1:
        axis = len(shape) - (1 if over_tensor == "output" else 2)
        if shape[axis] % tensor:
            raise ValueError(
                f"train.mesh.tensor is {tensor}, which does not divide the {over_tensor} of {path} {tuple(shape)}, "
                f"split by the rule {rule[0]!r} of sharding.RULES; choose a divisor of {shape[axis]}"
            )
        axes[axis] = "tensor"
    free = [i for i, size in enumerate(shape) if size % fsdp == 0 and axes[i] is None]
    if over_fsdp and fsdp > 1 and free and math.prod(shape) >= SMALL:
        first = len(shape) - 2 if over_fsdp == "input" else None
        axes[max(free, key=lambda i: (i == first, shape[i], i))] = "fsdp"
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


SMALL = 2**10  # elements, below which a parameter is whole on every device
LARGE = 2**24  # numbers that may lie whole on every device whatever the share of a device is


def state_sharding(mesh, state):
    """Shardings for a tree whose array leaves sit in dicts {path: array}; other leaves are replicated.

    Raises:
        ValueError: as `parameter_spec`, and where the fsdp axis divides so little that it saves no memory.
    """
    fsdp, tensor, sizes = mesh.shape["fsdp"], mesh.shape["tensor"], {True: 0, False: 0}

    def place(keys, leaf):
        if not (keys and isinstance(keys[-1], jax.tree_util.DictKey)):
            return replicated(mesh)
        spec = parameter_spec(keys[-1].key, leaf.shape, fsdp, tensor)
        sizes["fsdp" in spec] += math.prod(leaf.shape)
        return NamedSharding(mesh, spec)

    placed = jax.tree_util.tree_map_with_path(place, state)
    whole, total = sizes[False], sum(sizes.values())
    if fsdp > 1 and (whole > total / 2 or whole > max(total / fsdp, LARGE)):
        raise ValueError(
            f"train.mesh.fsdp is {fsdp}, which divides no axis of parameters that are {whole} numbers of {total} (rule "
            "'largest' of sharding.RULES); choose a divisor of the widths, such as 2, 8 or 64, and give data the rest"
        )
    return placed


def gathered(params, dtype=None):
    """A module's nested params as it computes with them: whole over fsdp, still split over tensor.

    They are cast to `dtype` (None: as they are) before they travel; their gradients go back to where they lie. Without
    a mesh, or with an fsdp axis of 1, they are left as they are.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not splits_parameters():
        return params
    tensor = mesh.shape["tensor"]

    def gather(keys, a):
        path = "/".join(key.key for key in keys)
        split = parameter_spec(path, a.shape, mesh.shape["fsdp"], tensor)
        whole = parameter_spec(path, a.shape, 1, tensor)
        return _gather(a, split, whole, dtype or a.dtype) if "fsdp" in split else a

    return jax.tree_util.tree_map_with_path(gather, params)


def splits_parameters():
    """Whether what is traced is traced for a mesh that splits parameters over fsdp."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape["fsdp"] > 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(a, split, whole, dtype):
    # the barrier: else XLA moves the cast behind the gather
    cast = jax.lax.optimization_barrier(jax.lax.with_sharding_constraint(a.astype(dtype), split))
    return checkpoint_name(jax.lax.with_sharding_constraint(cast, whole), GATHERED)


def _gather_forward(a, split, whole, dtype):
    return _gather(a, split, whole, dtype), jax.numpy.zeros((), a.dtype)


def _gather_backward(split, whole, dtype, like, gradient):
    axis = split.index("fsdp")
    share = gradient.shape[axis] // jax.sharding.get_abstract_mesh().shape["fsdp"]
    if platform() == "tpu" and gradient.ndim > 1 and share % LANES:
        # XLA scatters such a sum along the other axis of a tile alone
        *outer, last = (i for i in range(gradient.ndim) if i != axis)
        gradient = with_layout_constraint(gradient, Layout(major_to_minor=(*outer, axis, last)))
    return (jax.lax.with_sharding_constraint(gradient, split).astype(like.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)


# ---- activations


def over(mesh, function):
    """The function as it is traced for a mesh: inside it `constrain` and `per_device` know the axes."""

    @functools.wraps(function)
    def traced(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def constrain(x, place):
    """x (B, F, H, W, C) split over the mesh as PLACES says; without a mesh, or of another rank, as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or x.ndim != 5:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(mesh, x.shape, place))


def activation_spec(mesh, shape, place):
    """The PartitionSpec at a place of an activation (B, F, H, W, C); of another rank, split by samples alone."""
    axes = [_samples(mesh, shape[0])] + [None] * (len(shape) - 1)
    if len(shape) == 5:
        split = next((axis for axis in PLACES[place] if shape[axis] % mesh.shape["frame"] == 0), None)
        if split is not None:
            axes[split] = "frame"
    return PartitionSpec(*axes)


def gathered_rows(x):
    """x (B, ..., C), a vector for each sample or frame, whole over fsdp; without a mesh as it is.

    A layer between two of these makes each device's part of its kernel's gradient there, and nothing is summed over
    fsdp, for which a device computes it of all these rows. Of so few XLA for TPU would sum the whole gradient.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not splits_parameters():
        return x
    samples = "data" if x.shape[0] % mesh.shape["data"] == 0 else None
    kept = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(samples, *kept))


def per_device(attention, query, key, value):
    """attention(query, key, value), each device on its own samples, frames (or places, or queries) and heads.

    The compiler cannot look into kernels and loops, and would gather what they are given. Arguments as the attention's:
    (B, F, S, heads, D), or (B, S, heads, D) where the frames are part of S.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or query.ndim not in (4, 5):
        return attention(query, key, value)
    samples = _samples(mesh, query.shape[0])
    heads = "tensor" if query.shape[-2] % mesh.shape["tensor"] == 0 else None
    split = next((i for i in range(1, query.ndim - 2) if query.shape[i] % mesh.shape["frame"] == 0), None)
    q_axes = [samples, *("frame" if i == split else None for i in range(1, query.ndim - 2)), heads, None]
    shared = split == query.ndim - 3  # queries are split; each sees all keys
    k_axes = [None if shared and axis == "frame" else axis for axis in q_axes]
    q_spec, k_spec = PartitionSpec(*q_axes), PartitionSpec(*k_axes)
    mapped = jax.shard_map(attention, in_specs=(q_spec, k_spec, k_spec), out_specs=q_spec, check_vma=False)
    return mapped(query, key, value)


def per_frame(function, x, *params):
    """function(x, *params) of x (B, F, H, W, C) that folds B and F into one axis, each device on its own frames.

    Were the whole of B and F folded, no device would hold a part of it: the compiler would gather all frames.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["frame"] == 1 or x.ndim != 5 or x.shape[1] % mesh.shape["frame"]:
        return function(x, *params)
    frames, whole = PartitionSpec(None, "frame"), PartitionSpec()
    mapped = jax.shard_map(
        function, in_specs=(frames, *(whole for _ in params)), out_specs=frames, axis_names={"frame"}, check_vma=False
    )
    return mapped(x, *params)


def _samples(mesh, size):
    return ("data", "fsdp") if size % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 else None


# ---- batches


def replicated(mesh):
    """The whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh):
    """Batches are split along axis 0 over data and fsdp; devices along frame and tensor share samples."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def rows(mesh, size):
    """Which samples of a batch of that size lie on this process' devices, in the order that `place_batch` takes.

    On TPUs neighbours in the mesh are neighbours of the network, and a process' rows are not always next to each other.
    """
    feeding = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)[:, 0]
    share, here = size // len(feeding), jax.process_index()
    places = [place for place, device in enumerate(feeding) if device.process_index == here]
    return [place * share + row for place in places for row in range(share)]


def place_batch(mesh, batch):
    """Puts this process' part of a batch (numpy), its `rows`, on its devices as one global array.

    Raises:
        ValueError: the batch does not divide over the devices, or the processes would have to share samples.
    """
    size, devices = len(next(iter(batch.values()))), len(mesh.local_devices)
    sharing = mesh.shape["frame"] * mesh.shape["tensor"]
    if devices % sharing:
        raise ValueError(
            f"train.mesh has frame x tensor = {sharing} devices share samples, but a process has {devices}; "
            "choose a divisor of that"
        )
    if size % (devices // sharing):
        raise ValueError(
            f"a batch of {size} does not divide over {devices // sharing} devices; make train.batch_size a multiple"
        )
    sharding, whole = batch_sharding(mesh), size * mesh.size // devices
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(part), (whole, *np.shape(part)[1:]))
        for name, part in batch.items()
    }
