"""Who acts with an agent of the off-policy learner, in the box [−1, 1]^A: an actor that samples, or its mode with noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from policyopt.types import Part

Agent: TypeAlias = nn.ModuleDict
"""An agent is a set of named networks."""

Network = TypeVar("Network", bound=nn.Module)


def network(agent: Agent, name: str, kind: type[Network]) -> Network:
    """The agent's network of this name. Raises TypeError where it is of another kind."""
    found = agent[name]
    if not isinstance(found, kind):
        raise TypeError(f"the network {name!r} has to be a {kind.__name__} here, and is a {type(found).__name__}")
    return found


class Actor(Protocol):
    """A network that acts in the box: greedily by its mode."""

    action_size: int

    def mode(self, observation: Tensor) -> Tensor: ...


class SamplingActor(Actor, Protocol):
    """One that also samples: actions [N, A] and their log-densities [N]."""

    def sample(self, observation: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]: ...


class ExploringPolicy:
    """Acts with the actor's mode plus Gaussian noise of a deviation, without it where greedy; ``warm_up`` is uniform in the
    box."""

    def __init__(self, actor: Actor, deviation: float) -> None:
        self.actor, self.deviation = actor, deviation

    def explore(self, observation: Tensor, rng: torch.Generator) -> Tensor:
        """Actions [N, A] for observations [N, S] while experience is gathered."""
        action = self.actor.mode(observation)
        if self.deviation == 0.0:
            return action
        return (action + self.deviation * torch.randn(action.shape, generator=rng)).clamp(-1.0, 1.0)

    @torch.no_grad()
    def act(
        self, observation: Tensor, memory: Any, rng: torch.Generator, greedy: bool = False
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        """Actions [N, A] for observations [N, S]."""
        return self.actor.mode(observation) if greedy else self.explore(observation, rng), {}, memory

    def warm_up(self, observation: Tensor, memory: Any, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor], Any]:
        return 2.0 * torch.rand(len(observation), self.actor.action_size, generator=rng) - 1.0, {}, memory


class ActorPolicy(ExploringPolicy):
    """Explores with the actor's own samples."""

    actor: SamplingActor

    def __init__(self, actor: SamplingActor) -> None:
        super().__init__(actor, 0.0)

    def explore(self, observation: Tensor, rng: torch.Generator) -> Tensor:
        return self.actor.sample(observation, rng)[0]


@dataclass(frozen=True, kw_only=True)
class Acting(Part):
    """Who acts with an agent: its actor. Others may put something between the actor and the environment, or act in
    ``discrete`` choices."""

    discrete: ClassVar[bool] = False

    def modules(self, problem: Any, policy: Any) -> dict[str, nn.Module]:
        """Networks that acting needs and nothing trains, made from the ``policy`` that the learner was given."""
        if policy is not None:
            raise ValueError(f"this method makes its own policy and has no use for a {type(policy).__name__}")
        return {}

    def policy(self, agent: Agent) -> Any:
        actor: Any = agent["actor"]
        return ActorPolicy(actor)


@dataclass(frozen=True, kw_only=True)
class Exploring(Acting):
    """The actor's mode, with Gaussian noise of deviation ``noise`` while it gathers. Raises ValueError where negative."""

    noise: float = 0.1

    def __post_init__(self) -> None:
        if not self.noise >= 0.0:
            raise ValueError(f"the noise of exploration must not be negative, got {self.noise:g}")

    def policy(self, agent: Agent) -> Any:
        actor: Any = agent["actor"]
        return ExploringPolicy(actor, self.noise)
