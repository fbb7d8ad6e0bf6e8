"""Linear policies without bias that start from zero: a softmax table, or a Gaussian of fixed width around a gain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from policyopt.models.control import MLP
from policyopt.models.gaussian import GaussianPolicy
from policyopt.models.mlp import Architecture, PerceptronPolicy


@dataclass(frozen=True, kw_only=True)
class Linear(Architecture):
    """Outputs W s with W = 0 at first. Discrete actions: softmax(W s), a table where states are one-hot; continuous ones:
    N(W s, ``deviation``²), whose Fisher information never vanishes. Raises ValueError for a deviation that isn't positive.
    """

    deviation: float = 0.3

    def __post_init__(self) -> None:
        if not self.deviation > 0.0:
            raise ValueError(f"the deviation must be positive, got {self.deviation:g}")

    def build(self, problem: Any, seed: int) -> PerceptronPolicy:
        policy = MLP(hidden=(), standardize=False).build(problem, seed)
        layer = policy.network[0]
        assert isinstance(layer, nn.Linear)
        nn.init.zeros_(layer.weight)
        layer.register_parameter("bias", None)
        if isinstance(policy, GaussianPolicy):
            policy.log_deviation = nn.Parameter(torch.full_like(policy.log_deviation, math.log(self.deviation)), False)
        return policy
