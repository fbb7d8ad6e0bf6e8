"""Products of float32 matrices on a CPU, by the quicker of the two libraries that PyTorch brings.

PyTorch gives such products to MKL, which leaves the widest vector units of other makers' processors idle. oneDNN uses them:
on a Zen 5 core a product of 256³ takes 0.15 ms instead of 0.32, and bias and activation come with it. Results differ in the
last digits, as they do between processors. No gradients here: ``models.layers`` writes them out.
"""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from torch import Tensor

SMALLEST = 1 << 20  # multiplications below which oneDNN's call, some 12 µs, costs more than it saves


def _wide_and_idle() -> bool:
    """AVX-512 on a processor that isn't Intel's, and a PyTorch with oneDNN."""
    facts = Path("/proc/cpuinfo")
    maker = facts.read_text(errors="replace") if facts.exists() else platform.processor()
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512") and "GenuineIntel" not in maker
    return wide and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


ONEDNN = _wide_and_idle()


def preferred(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN is quicker for a […, N, I] times b […, I, O]."""
    large = a.shape[-2] * b.shape[-2] * b.shape[-1] > SMALLEST
    return ONEDNN and large and a.dtype is torch.float32 and a.device.type == "cpu"


def _one_by_one(a: Tensor, b: Tensor) -> bool:
    """Whether the K products of [K, N, I] and [K, I, O] go one after the other: a batched one with a single column takes
    five times as long on a CPU, and oneDNN has none here."""
    return a.dim() == 3 and (preferred(a, b) or (b.shape[-1] == 1 and a.device.type == "cpu"))


def product(a: Tensor, b: Tensor) -> Tensor:
    """a [N, I] times b [I, O], or K of them: [K, N, I] and [K, I, O]."""
    if _one_by_one(a, b):
        return torch.stack([product(*pair) for pair in zip(a, b, strict=True)])
    return fused(a, b, None, "none") if preferred(a, b) else a @ b


def affine(a: Tensor, b: Tensor, bias: Tensor, scale: int = 1) -> Tensor:
    """``scale`` times (a · b + bias) in operations that autograd knows: bias [O], or [K, 1, O] where there are K products."""
    if a.dim() == 2:
        return torch.addmm(bias, a, b, beta=scale, alpha=scale)
    if _one_by_one(a, b):
        return torch.stack([affine(*one, scale) for one in zip(a, b, bias, strict=True)])
    return torch.baddbmm(bias, a, b, beta=scale, alpha=scale)


def fused(a: Tensor, b: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """activation(a · b + bias) by oneDNN alone ("none", "relu", "tanh"), of one product or of K, without a gradient."""
    if a.dim() == 2:
        single = torch.ops.policyopt.fused if torch.compiler.is_compiling() else _fused
        made: Tensor = single(a, b, bias, activation)
        return made
    assert bias is not None
    return torch.stack([fused(x, y, own[0], activation) for x, y, own in zip(a, b, bias, strict=True)])


def _fused(a: Tensor, b: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    made: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, activation, [], "")
    return made


def _shape(a: Tensor, b: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return a.new_empty(len(a), b.shape[1])


OPERATIONS = torch.library.Library("policyopt", "DEF")  # under a name of its own compiled code takes it as it is
OPERATIONS.define("fused(Tensor a, Tensor b, Tensor? bias, str activation) -> Tensor")
OPERATIONS.impl("fused", _fused, "CPU")
torch.library.register_fake("policyopt::fused", _shape, lib=OPERATIONS)
