"""Records outputs of FID's Inception, VideoGPT's I3D and SyncNet in torch, for tests without torch.

    python -m tests.parity.record_metrics                # writes tests/parity/metrics.npz, from narrow networks
    python -m tests.parity.record_metrics --check        # recomputes and compares
    python -m tests.parity.record_metrics --full out.npz # from networks of full width, for the slow test

It needs torch, scipy and python_speech_features. The networks are assembled here from torch's own layers. Weights and
inputs are drawn by numpy from the names and shapes of the tensors (`metric_cases`), so that only outputs are stored.
"""

import sys

import numpy as np
import python_speech_features
import torch
import torch.nn.functional as F
from torch import nn

from tests.parity import metric_cases


class Inception(nn.Module):
    """FID's Inception v3 of pytorch-fid."""

    def __init__(self, weights):
        super().__init__()
        self.w = {name: torch.from_numpy(np.asarray(value, np.float64)) for name, value in weights.items()}

    def c(self, x, name, stride=1, padding=0):
        kernel = self.w[f"{name}.conv.weight"]
        x = F.conv2d(x, kernel, stride=stride, padding=padding)
        bn = [self.w[f"{name}.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(x, *bn, training=False, eps=1e-3))

    def a(self, x, n):
        five = self.c(self.c(x, f"{n}.branch5x5_1"), f"{n}.branch5x5_2", padding=2)
        three = self.c(self.c(x, f"{n}.branch3x3dbl_1"), f"{n}.branch3x3dbl_2", padding=1)
        three = self.c(three, f"{n}.branch3x3dbl_3", padding=1)
        return torch.cat([self.c(x, f"{n}.branch1x1"), five, three, self.pool(x, n)], 1)

    def pool(self, x, n):
        return self.c(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), f"{n}.branch_pool")

    def b(self, x, n):
        three = self.c(self.c(x, f"{n}.branch3x3dbl_1"), f"{n}.branch3x3dbl_2", padding=1)
        three = self.c(three, f"{n}.branch3x3dbl_3", stride=2)
        return torch.cat([self.c(x, f"{n}.branch3x3", stride=2), three, F.max_pool2d(x, 3, 2)], 1)

    def chain(self, x, n, first, paddings):
        for k, padding in enumerate(paddings):
            x = self.c(x, f"{n}.{first}_{k + 1}", padding=padding)
        return x

    def s(self, x, n):
        across, down = (0, 3), (3, 0)
        seven = self.chain(x, n, "branch7x7", [0, across, down])
        double = self.chain(x, n, "branch7x7dbl", [0, down, across, down, across])
        return torch.cat([self.c(x, f"{n}.branch1x1"), seven, double, self.pool(x, n)], 1)

    def d(self, x, n):
        three = self.c(self.c(x, f"{n}.branch3x3_1"), f"{n}.branch3x3_2", stride=2)
        seven = self.chain(x, n, "branch7x7x3", [0, (0, 3), (3, 0)])
        return torch.cat([three, self.c(seven, f"{n}.branch7x7x3_4", stride=2), F.max_pool2d(x, 3, 2)], 1)

    def e(self, x, n, last):
        three = self.c(x, f"{n}.branch3x3_1")
        double = self.c(self.c(x, f"{n}.branch3x3dbl_1"), f"{n}.branch3x3dbl_2", padding=1)
        split = [
            torch.cat([self.c(y, f"{n}.{m}a", padding=(0, 1)), self.c(y, f"{n}.{m}b", padding=(1, 0))], 1)
            for y, m in ((three, "branch3x3_2"), (double, "branch3x3dbl_3"))
        ]
        pool = self.c(F.max_pool2d(x, 3, 1, 1), f"{n}.branch_pool") if last else self.pool(x, n)
        return torch.cat([self.c(x, f"{n}.branch1x1"), *split, pool], 1)

    def forward(self, x):
        x = self.c(self.c(x, "Conv2d_1a_3x3", 2), "Conv2d_2a_3x3")
        x = F.max_pool2d(self.c(x, "Conv2d_2b_3x3", padding=1), 3, 2)
        x = F.max_pool2d(self.c(self.c(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"), 3, 2)
        for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = self.a(x, name)
        x = self.b(x, "Mixed_6a")
        for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            x = self.s(x, name)
        x = self.e(self.e(self.d(x, "Mixed_7a"), "Mixed_7b", False), "Mixed_7c", True)
        return F.adaptive_avg_pool2d(x, (1, 1))[:, :, 0, 0]


class I3D(nn.Module):
    """VideoGPT's I3D."""

    def __init__(self, weights):
        super().__init__()
        self.w = {name: torch.from_numpy(np.asarray(value, np.float64)) for name, value in weights.items()}

    @staticmethod
    def pad(x, window, stride):
        sides = []
        for size, k, s in reversed(list(zip(x.shape[2:], window, stride, strict=True))):
            total = max(k - (size % s or s), 0)
            sides += [total // 2, total - total // 2]
        return F.pad(x, sides)

    def u(self, x, name, stride=1):
        kernel = self.w[f"{name}.conv3d.weight"]
        x = F.conv3d(self.pad(x, kernel.shape[2:], (stride,) * 3), kernel, stride=stride)
        bn = [self.w[f"{name}.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(x, *bn, training=False, eps=1e-5))

    def m(self, x, window, stride):
        return F.max_pool3d(self.pad(x, window, stride), window, stride)

    def mixed(self, x, n):
        one = self.u(self.u(x, f"{n}.b1a"), f"{n}.b1b")
        two = self.u(self.u(x, f"{n}.b2a"), f"{n}.b2b")
        return torch.cat([self.u(x, f"{n}.b0"), one, two, self.u(self.m(x, (3,) * 3, (1,) * 3), f"{n}.b3b")], 1)

    def forward(self, x):
        x = self.m(self.u(x, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
        x = self.m(self.u(self.u(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3"), (1, 3, 3), (1, 2, 2))
        x = self.m(self.mixed(self.mixed(x, "Mixed_3b"), "Mixed_3c"), (3, 3, 3), (2, 2, 2))
        for name in "bcdef":
            x = self.mixed(x, f"Mixed_4{name}")
        x = self.mixed(self.mixed(self.m(x, (2, 2, 2), (2, 2, 2)), "Mixed_5b"), "Mixed_5c")
        x = F.avg_pool3d(x, (2, *x.shape[3:]), 1)
        x = F.conv3d(x, self.w["logits.conv3d.weight"], self.w["logits.conv3d.bias"])
        return x[:, :, :, 0, 0].mean(2)


def chain(weights, name, layers):
    """Builds an nn.Sequential of SyncNet in float64 and loads its weights."""
    network = nn.Sequential(*layers)
    state = {key.removeprefix(f"{name}."): torch.from_numpy(value) for key, value in weights.items()}
    network.load_state_dict({key: state[key] for key in network.state_dict() if "num_batches" not in key}, strict=False)
    return network.double().eval()


def syncnet(narrow):
    """Returns the outputs of SyncNet {name: array}."""
    weights = metric_cases.syncnet_weights(narrow)
    c = lambda width: width // narrow  # noqa: E731
    relu, norm2, norm3 = nn.ReLU, nn.BatchNorm2d, nn.BatchNorm3d
    pool = lambda padding: nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding)  # noqa: E731
    same = lambda: (nn.Conv3d(c(256), c(256), (1, 3, 3), padding=(0, 1, 1)), norm3(c(256)), relu())  # noqa: E731
    lip = chain(weights, "netcnnlip", (
        nn.Conv3d(3, c(96), (5, 7, 7), (1, 2, 2)), norm3(c(96)), relu(), pool(0),
        nn.Conv3d(c(96), c(256), (1, 5, 5), (1, 2, 2), (0, 1, 1)), norm3(c(256)), relu(), pool((0, 1, 1)),
        *same(), *same(), *same(), pool(0), nn.Conv3d(c(256), c(512), (1, 6, 6)), norm3(c(512)), relu(),
    ))  # fmt: skip
    aud = chain(weights, "netcnnaud", (
        nn.Conv2d(1, c(64), 3, 1, 1), norm2(c(64)), relu(), nn.MaxPool2d(1, 1),
        nn.Conv2d(c(64), c(192), 3, 1, 1), norm2(c(192)), relu(), nn.MaxPool2d(3, (1, 2)),
        nn.Conv2d(c(192), c(384), 3, padding=1), norm2(c(384)), relu(),
        nn.Conv2d(c(384), c(256), 3, padding=1), norm2(c(256)), relu(),
        nn.Conv2d(c(256), c(256), 3, padding=1), norm2(c(256)), relu(), nn.MaxPool2d(3, 2),
        nn.Conv2d(c(256), c(512), (5, 4)), norm2(c(512)), relu(),
    ))  # fmt: skip
    ends = (nn.Linear(c(512), c(512)), nn.BatchNorm1d(c(512)), relu(), nn.Linear(c(512), c(1024)))
    faces, windows, (lips, sound), wave = metric_cases.syncnet_inputs()
    clips = np.stack([faces[k : k + 5].transpose(3, 0, 1, 2) for k in range(3)]).astype(np.float64)
    found = {}
    with torch.no_grad():
        mid = lip(torch.from_numpy(clips)).flatten(1)
        found["syncnet_lip"] = chain(weights, "netfclip", ends)(mid).numpy()
        mid = aud(torch.from_numpy(windows.astype(np.float64))[:, None]).flatten(1)
        found["syncnet_sound"] = chain(weights, "netfcaud", ends)(mid).numpy()
    shift = 15
    padded = F.pad(torch.from_numpy(sound), (0, 0, shift, shift))
    rows = [F.pairwise_distance(torch.from_numpy(lips[[i]]), padded[i : i + 2 * shift + 1]) for i in range(len(lips))]
    mean = torch.stack(rows, 1).mean(1)
    smallest, place = mean.min(0)
    found["syncnet_score"] = np.array([mean.median() - smallest, smallest, shift - place])
    found["mfcc"] = python_speech_features.mfcc(wave.astype(np.int16), 16000)
    return {name: np.asarray(array, np.float32) for name, array in found.items()}


def record(full):
    """Returns the outputs {network: array}."""
    found = {} if full else syncnet(metric_cases.NARROW)
    for name, network in (("inception", Inception), ("i3d", I3D)):
        weights = metric_cases.weights(name, 1 if full else metric_cases.NARROW)
        inputs = metric_cases.inputs(name, full)
        x = torch.from_numpy(np.moveaxis(inputs.astype(np.float64), -1, 1))
        with torch.no_grad():
            found[name] = network(weights)(x).numpy().astype(np.float32)
    return found


def check(arrays):
    """Compares arrays with those stored; returns the exit status."""
    stored = np.load(metric_cases.RECORDED)
    wrong = [name for name, array in arrays.items() if not np.allclose(stored[name], array, rtol=1e-5, atol=1e-5)]
    print(f"{metric_cases.RECORDED}: {len(arrays)} arrays, {len(wrong)} differ {wrong}")
    return int(bool(wrong) or set(stored.files) != set(arrays))


def main(arguments):
    """Writes or compares the outputs."""
    if "--check" in arguments:
        return check(record(full=False))
    full = "--full" in arguments
    np.savez(arguments[-1] if full else metric_cases.RECORDED, **record(full))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
