"""What policies and critics of control share: orthogonal multilayer perceptrons, standardized observations."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from policyopt.credit.scaling import merge_moments
from policyopt.models.layers import Layers
from policyopt.types import Outputs, Part, Rollouts, generator


def mlp(sizes: Sequence[int], gain: float, rng: torch.Generator) -> Layers:
    """Linear layers with tanh between them; orthogonal weights (gain √2, the last one ``gain``), zero biases."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        last = i == len(sizes) - 2
        layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
        nn.init.orthogonal_(layer.weight, gain if last else 2**0.5, generator=rng)
        nn.init.zeros_(layer.bias)
        layers += [layer] if last else [layer, nn.Tanh()]
    return Layers(*layers)


class Standardization(nn.Module):
    """(x - mean) / deviation, kept within ±``limit``.

    What is in use changes at ``refresh`` alone, not with every observation: between collecting and the last update the
    policy has to be one function, or importance ratios would not begin at one.
    """

    shift: Tensor
    scale: Tensor
    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, size: int, limit: float = 10.0) -> None:
        super().__init__()
        self.limit = limit
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(size, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.shift) / self.scale).clamp(-self.limit, self.limit)

    @torch.no_grad()
    def observe(self, observations: Tensor) -> None:
        """Adds observations […, S] to the running moments."""
        moments = merge_moments(self.count, self.mean, self.squares, observations.flatten(0, -2))
        self.count, self.mean, self.squares = moments

    @torch.no_grad()
    def fit(self, observations: Tensor, epsilon: float) -> None:
        """Use the mean and the deviation + ``epsilon`` of a whole data set [N, S]."""
        self.shift.copy_(observations.mean(0))
        self.scale.copy_(observations.std(0, correction=0) + epsilon)

    @torch.no_grad()
    def refresh(self) -> None:
        """From here on the moments of all that was observed are in use."""
        if self.count > 0:
            self.shift.copy_(self.mean)
            self.scale.copy_((self.squares / self.count + 1e-8).sqrt())


class Perceptron(nn.Module):
    """A network on observations […, S], standardized where ``standardization`` is there; evaluated in pieces of rows."""

    def __init__(
        self, sizes: Sequence[int], gain: float, rng: torch.Generator, standardization: Standardization | None
    ):
        super().__init__()
        self.network, self.standardization = mlp(sizes, gain, rng), standardization

    @property
    def device(self) -> torch.device:
        device: torch.device = self.network.maps[0].weight.device
        return device

    def forward(self, observations: Tensor) -> Tensor:
        x = observations if self.standardization is None else self.standardization(observations)
        out: Tensor = self.network(x)
        return out

    def micro_batches(self, batch: Rollouts, steps: int) -> list[slice]:
        """The rows of pieces with at most ``steps`` steps (one row at least)."""
        count, rows = len(batch), max(1, steps // batch.mask.shape[1])
        return [slice(i, min(i + rows, count)) for i in range(0, count, rows)]

    def default_micro_batch(self) -> int:
        """Steps whose activations take about 0.25 GiB, a few numbers for each unit."""
        units = sum(layer.out_features for layer in self.network if isinstance(layer, nn.Linear))
        return int(2**28 / (4 * 4 * units))


class PerceptronPolicy(Perceptron):
    """A policy on a perceptron; subclasses say what its outputs mean.

    The weights are drawn from ``rng``; ``objectives`` is the number of heads that its critic has (0: a scalar value).
    """

    def __init__(
        self,
        observation: int,
        outputs: int,
        hidden: Sequence[int],
        rng: torch.Generator,
        *,
        objectives: int = 0,
        standardize: bool = False,
    ) -> None:
        standardization = Standardization(observation) if standardize else None
        super().__init__((observation, *hidden, outputs), 0.01, rng, standardization)
        self.observation, self.hidden, self.objectives = observation, tuple(hidden), objectives

    def sample(self, outputs: Tensor, rng: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """outputs [N, …] → actions, log-probabilities [N], entropies [N]; the mode where ``rng`` is None."""
        raise NotImplementedError

    def logp(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """The first of ``logp_entropy``, where the second is not wanted."""
        return self.logp_entropy(outputs, actions)[0]

    def logp_entropy(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """outputs and actions [N, T, …] → log-probabilities and entropies [N, T]."""
        raise NotImplementedError

    def draw(self, outputs: Tensor, rng: torch.Generator) -> Tensor:
        """outputs [N, …] → actions, as ``sample`` draws them."""
        return self.sample(outputs, rng)[0]

    @torch.no_grad()
    def play(self, observation: Tensor, rng: torch.Generator) -> Tensor:
        """observation [N, S] → actions [N] or [N, A] alone; ``evaluate`` says of all of them at once how likely they were."""
        return self.draw(self.forward(observation.to(self.device)), rng)

    def distribution(self, observations: Tensor) -> Distribution:
        """π(· | s) for observations […, S], with gradient: log-probabilities and exact divergences."""
        raise NotImplementedError

    @torch.no_grad()
    def act(
        self, observation: Tensor, memory: Any, rng: torch.Generator, greedy: bool = False
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        """observation [N, S] → actions [N] or [N, A], what was recorded of them, and the memory as it came."""
        outputs = self(observation.to(self.device))
        actions, logp, entropy = self.sample(outputs, None if greedy else rng)
        return actions, {"behaviour_logp": logp, "entropy": entropy}, memory

    def evaluate(self, batch: Rollouts, want: Sequence[str] = ("logp",)) -> Outputs:
        """logp (and entropy where wanted) [N, T], with gradient."""
        outputs = self(batch.observations)
        if "entropy" not in want:
            return Outputs(logp=self.logp(outputs, batch.actions))
        logp, entropy = self.logp_entropy(outputs, batch.actions)
        return Outputs(logp=logp, entropy=entropy)

    def frozen_copy(self) -> Self:
        """The same policy with its present weights, never trained."""
        return deepcopy(self).requires_grad_(False)

    def critic(self, seed: int) -> Any:
        """A value network of the same shape that sees observations as this policy does."""
        from policyopt.models.value import ValueNetwork

        rng = generator(seed, "critic", device=self.device)
        return ValueNetwork(self.observation, self.hidden, self.objectives, rng, self.standardization).to(self.device)


@dataclass(frozen=True, kw_only=True)
class Architecture(Part):
    """Builds a policy for a problem, where none is given."""

    def build(self, problem: Any, seed: int) -> Any:
        raise NotImplementedError
