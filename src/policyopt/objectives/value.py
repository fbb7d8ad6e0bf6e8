"""Losses of value functions, per step."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_value_loss(value: Tensor, returns: Tensor, old_value: Tensor, clip: float | None) -> Tensor:
    """½ (value - returns)², and with ``clip`` the larger of it and the same with the value kept within ±clip of its old
    one (PPO's implementation). All the same shape; returns and old_value are constants."""
    loss = (value - returns).square()
    if clip is not None:
        near = old_value + (value - old_value).clamp(-clip, clip)
        loss = torch.maximum(loss, (near - returns).square())
    return 0.5 * loss


def explained_variance(value: Tensor, returns: Tensor) -> Tensor:
    """1 - Var(returns - value) / Var(returns); NaN where the returns do not vary."""
    return 1 - (returns - value).var(correction=0) / returns.var(correction=0)
