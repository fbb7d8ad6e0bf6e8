"""Flow policies: a network of velocities that carries Gaussian noise to actions (rectified flow, arXiv 2209.03003).

Trained by imitation alone; sampled by a deterministic integration, so that an action is a function of the observation
and of the noise it started from. To whoever chooses the noise, ``decode`` is a black box.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from policyopt.models.soft_actor import multilayer_perceptron
from policyopt.types import Part

Field: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]  # (observation, point, time) → velocity


def flow_matching_error(field: Field, observation: Tensor, action: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """‖v(s, (1 − t) x₀ + t a, t) − (a − x₀)‖² [N] for observation [N, S], action and noise x₀ [N, A], time [N, 1]."""
    point = noise + time * (action - noise)
    return (field(observation, point, time) - (action - noise)).square().sum(-1)


def euler(field: Field, observation: Tensor, noise: Tensor, steps: int) -> Tensor:
    """Where ``steps`` equal steps along the field take the noise [N, A] from time 0 to time 1."""
    point = noise
    for k in range(steps):
        point = point + field(observation, point, noise.new_full((len(noise), 1), k / steps)) / steps
    return point


class FlowField(nn.Module):
    """The velocity v(s, x, t) [N, A] from observation [N, S], point [N, A] and time [N, 1]."""

    def __init__(self, observation_size: int, action_size: int, width: int, layers: int) -> None:
        super().__init__()
        sizes = (observation_size + action_size + 1, *(width,) * layers, action_size)
        self.layers = multilayer_perceptron(sizes, nn.SiLU, layer_norm=False)

    def forward(self, observation: Tensor, point: Tensor, time: Tensor) -> Tensor:
        velocity: Tensor = self.layers(torch.cat((observation, point, time), -1))
        return velocity


class FlowPolicy(nn.Module):
    """Actions in the box [−1, 1]^A, decoded from noise of the same shape in ``steps`` Euler steps."""

    def __init__(self, field: nn.Module, action_size: int, steps: int) -> None:
        super().__init__()
        self.field, self.action_size, self.steps = field, action_size, steps

    @torch.no_grad()
    def decode(self, observation: Tensor, noise: Tensor) -> Tensor:
        """The action [N, A] for this noise [N, A], always the same."""
        return euler(self.field, observation, noise, self.steps).clamp(-1.0, 1.0)

    def act(
        self, observation: Tensor, memory: Any, rng: torch.Generator, greedy: bool = False
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        """Actions [N, A] from standard Gaussian noise, from its mean where ``greedy``."""
        shape = (len(observation), self.action_size)
        noise = torch.zeros(shape) if greedy else torch.randn(shape, generator=rng)
        return self.decode(observation, noise), {}, memory

    def imitation_error(self, observation: Tensor, action: Tensor, rng: torch.Generator) -> Tensor:
        """The flow matching error [N] of actions [N, A] at one random time and noise each."""
        noise, time = torch.randn(action.shape, generator=rng), torch.rand(len(action), 1, generator=rng)
        return flow_matching_error(self.field, observation, action, noise, time)


@dataclass(frozen=True, kw_only=True)
class Flow(Part):
    """Builds a flow policy. Raises ValueError without a positive number of steps, layers and units."""

    width: int = 256
    layers: int = 3
    steps: int = 10

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.steps) < 1:
            raise ValueError(f"a flow needs positive sizes, got {self.width=}, {self.layers=}, {self.steps=}")

    def build(self, observation_size: int, action_size: int, seed: int) -> FlowPolicy:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            field = FlowField(observation_size, action_size, self.width, self.layers)
        return FlowPolicy(field, action_size, self.steps)
