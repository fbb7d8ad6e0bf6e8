"""Linear layers of a language model by the quicker of the two libraries for products (``models.products``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from policyopt.models.products import fused, preferred, product

WORTH = 1 << 26  # multiplications; every new number of tokens costs oneDNN about a millisecond once


class QuickLinear(nn.Linear):
    """An ``nn.Linear`` whose large float32 products on a CPU go to oneDNN where that is quicker."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        flat, weight = x.reshape(rows, -1), self.weight.t()
        if rows * weight.numel() < WORTH or not preferred(flat, weight):
            return super().forward(x)
        made: Tensor = _Affine.apply(flat, self.weight, self.bias)
        return made.view(*x.shape[:-1], -1)


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return fused(x, weight.t(), bias, "none")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (x, weight), (for_x, for_weight, for_bias) = ctx.saved_tensors, ctx.needs_input_grad
        return (
            product(gradient, weight) if for_x else None,
            product(gradient.t(), x) if for_weight else None,
            gradient.sum(0) if for_bias else None,
        )


def quicken(model: nn.Module) -> None:
    """Makes every plain ``nn.Linear`` of the model a ``QuickLinear``; its weights stay where they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = QuickLinear
