"""Sums, minima and gathers over the processes of a run. With one process they are identities.

Whatever divides by a global count (active tokens of a batch, say) goes through here, so that training on several
processes will change this file and not the objectives.
"""

from __future__ import annotations

import torch
from torch import Tensor


def all_sum(value: Tensor) -> Tensor:
    """The sum of ``value`` over all processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value)
    return value
