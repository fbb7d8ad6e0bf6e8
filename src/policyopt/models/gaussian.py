"""A diagonal Gaussian policy whose deviation does not depend on the state."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from policyopt.models.mlp import PerceptronPolicy

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


class GaussianPolicy(PerceptronPolicy):
    """π(a | s) = N(mean(s), diag(exp(log_deviation))²) on actions [.., A].

    Actions are not bounded here: the environment clips them, the log-probability is that of what was sampled.
    """

    def __init__(
        self,
        observation: int,
        action: int,
        hidden: Sequence[int],
        rng: torch.Generator,
        *,
        objectives: int = 0,
        standardize: bool = False,
    ) -> None:
        super().__init__(observation, action, hidden, rng, objectives=objectives, standardize=standardize)
        self.log_deviation = nn.Parameter(torch.zeros(action))

    def sample(self, outputs: Tensor, rng: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        actions = outputs if rng is None else self.draw(outputs, rng)
        return actions, *self.logp_entropy(outputs, actions)

    def draw(self, outputs: Tensor, rng: torch.Generator) -> Tensor:
        noise = torch.randn(outputs.shape, generator=rng, device=rng.device).to(outputs.device)
        return torch.addcmul(outputs, self.log_deviation.exp(), noise)

    def logp(self, outputs: Tensor, actions: Tensor) -> Tensor:
        standard = (actions - outputs) * (-self.log_deviation).exp()
        return -(0.5 * standard.square() + self.log_deviation + HALF_LOG_TWO_PI).sum(-1)

    def logp_entropy(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        logp = self.logp(outputs, actions)
        entropy = (self.log_deviation + 0.5 + HALF_LOG_TWO_PI).sum()
        return logp, entropy.expand(logp.shape)

    def distribution(self, observations: Tensor) -> Distribution:
        deviation = self.log_deviation.exp()
        return Independent(Normal(self(observations), deviation, validate_args=False), 1, validate_args=False)
