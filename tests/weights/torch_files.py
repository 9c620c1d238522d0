"""Writes files of `torch.save` without torch, in the format that torch 1.6 and later writes."""

import collections
import io
import math
import pickle
import sys
import types
import zipfile

import numpy as np

_STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}


class _Storage:
    def __init__(self, kind, key, count):
        self.kind, self.key, self.count = kind, key, count


class _Tensor:
    def __init__(self, storage, shape):
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        self.arguments = storage, 0, shape, strides

    def __reduce__(self):
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        return rebuild, (*self.arguments, False, collections.OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        if not isinstance(obj, _Storage):
            return None
        return "storage", getattr(sys.modules["torch"], _STORAGES[obj.kind]), obj.key, "cpu", obj.count


def _stand_ins():
    """Returns modules with the names that the pickle refers to."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def rebuild():
        raise NotImplementedError

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = rebuild
    for name in _STORAGES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch", "__qualname__": name}))
    return {"torch": torch, "torch._utils": utils}


def save(path, arrays, entry=None, **more):
    """Writes {name: array} and further entries of the dict, as torch.save(state_dict, path) does.

    With `entry`, the file holds a dict with this entry and `dims`, as OpenAI's Whisper does.

    Arrays are requested twice, so that a mapping may make them one at a time.
    """
    tensors = collections.OrderedDict()
    for key, (name, array) in enumerate(arrays.items()):
        tensors[name] = _Tensor(_Storage(array.dtype.name, str(key), array.size), array.shape)
    tensors.update(more)
    before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules.update(_stand_ins())
    try:
        pickled = io.BytesIO()
        _Pickler(pickled, protocol=2).dump(tensors if entry is None else {"dims": {"n_mels": 80}, entry: tensors})
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{path.stem}/data.pkl", pickled.getvalue())
        for key, array in enumerate(arrays.values()):
            archive.writestr(f"{path.stem}/data/{key}", np.ascontiguousarray(array).tobytes())
        archive.writestr(f"{path.stem}/version", "3\n")
