"""PDPPO: PPO with a second critic on the state after the decision and before chance (arXiv 2504.05150).

A step of a stochastic simulator has a known part, sˣ = f(s, a) with the reward rˣ, and a random one. With Monte-Carlo
returns R of what is left of the reward, r - rˣ, and Rˣ of rˣ, both cut at the end of an episode:

    A = max(R - V(s), Rˣ - Vˣ(sˣ)),

with the values predicted at collection. PPO's clip has one ratio for each machine, not for the joint action. Every update
learns from the last ``blocks`` collections, with their stored log-probabilities and advantages, in full-batch epochs. The
two critics and the actor have disjoint parameters, unclipped gradients and Adam, which works coordinate by coordinate: one
optimizer for both critics is the same as the paper's two.

Deviations from the published code, where the paper is silent: all layers of the actor are trained (there, the hidden ones
stay at their random initialisation), with the house's orthogonal tanh networks; observations contain the set-up, since sˣ
and rˣ depend on it, and are standardized; an episode that is unfinished when the collection ends is not learned from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from policyopt.credit.groups import Credit
from policyopt.credit.returns import discounted_returns
from policyopt.credit.scaling import SingleSteps
from policyopt.learners.critic import Critic, LiveCritic
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.update import Adam
from policyopt.models.categorical import MultiCategoricalPolicy, categorical
from policyopt.models.control import MLP
from policyopt.models.value import ValueNetwork
from policyopt.objectives.divergence import EntropyBonus
from policyopt.objectives.policy_gradient import PolicyGradient, RatioClip
from policyopt.rollouts.vector import Vector
from policyopt.types import Clock, Collected, Outputs, Rollouts

FAMILY = "decision"
VARIANTS = ("summed", "one_critic", "ppo")


# -- collection


@dataclass(frozen=True, kw_only=True)
class PostDecision(Vector):
    """``Vector`` with post-decision states, and rewards [N, T, 2] divided into (r - rˣ, rˣ).

    The problem tells its known part: ``post_decision(observations, actions)`` → (post-decision observations, rewards), array
    operations on […, S] and […, A]; so an observation has to be the whole state. Raises ValueError where it has none.
    """

    gives: ClassVar[tuple[str, ...]] = (*Vector.gives, "post_observations")

    def __call__(self, policy: Any, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        known = getattr(problem, "post_decision", None)
        if known is None:
            raise ValueError(
                f"{getattr(problem, 'name', problem)!r} does not tell the known part of a step: pdppo needs a problem with "
                "post_decision(observations, actions), such as lot-sizing and slippery-lake; `pdppo:ppo` does without"
            )
        collected = super().__call__(policy, problem, clock, memory)
        batch = collected.batches["rollouts"]
        after, rewards = (
            torch.from_numpy(array).to(batch.rewards.device)
            for array in known(batch.observations.cpu().numpy(), batch.actions.cpu().numpy())
        )
        divided = torch.stack([batch.rewards - rewards, rewards], -1)
        batch = batch.replace(post_observations=after, rewards=divided)
        return Collected({**collected.batches, "rollouts": batch}, collected.metrics)


# -- critics


class TwoValues(nn.Module):
    """(V(s), Vˣ(sˣ)) as one value of two objectives, [N, T, 2]; ``post`` may be ``state`` itself."""

    def __init__(self, state: ValueNetwork, post: ValueNetwork) -> None:
        super().__init__()
        self.state, self.post = state, post
        self.micro_batches = state.micro_batches

    def evaluate(self, batch: Rollouts, want: Any = ("value",)) -> Outputs:
        pair = [self.state.value(batch.observations), self.post.value(batch.post_observations)]
        return Outputs(value=torch.stack(pair, -1))


class LivePair(LiveCritic):
    """``value`` [N, T, 2], and an update of both towards ``returns`` [N, T, 2]; there is no next value to bootstrap from."""

    @torch.no_grad()
    def annotate(self, batch: Rollouts, limit: int) -> Rollouts:
        pieces = [self.model.evaluate(batch[rows]).value for rows in self.model.micro_batches(batch, limit)]
        return batch.replace(value=torch.cat(pieces))


class LiveSum(LivePair):
    """One network at both states: the sum of its values is fitted to the sum of the returns."""

    def loss(self, batch: Rollouts) -> Tensor:
        return super().loss(batch.replace(value=batch.value.sum(-1), returns=batch.returns.sum(-1)))

    def fitted(self, batch: Rollouts) -> Tensor:
        return super().fitted(batch).sum(-1)


@dataclass(frozen=True, kw_only=True)
class PostDecisionCritic(Critic):
    """A critic of states and one of post-decision states; ``shared``: one network for both."""

    needs: ClassVar[tuple[str, ...]] = ("observations", "post_observations")
    gives: ClassVar[tuple[str, ...]] = ("value",)
    shared: bool = False

    def build(self, policy: Any, seed: int) -> LiveCritic:
        state = policy.critic(seed)
        pair = TwoValues(state, state if self.shared else policy.critic(seed + 2**31))
        return (LiveSum if self.shared else LivePair)(self, pair, 1e-3)


# -- credit


COMBINE: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda advantages: advantages.amax(-1),
    "sum": lambda advantages: advantages.sum(-1),
    "state": lambda advantages: advantages[..., 0],
}


@dataclass(frozen=True, kw_only=True)
class MonteCarloAdvantage(Credit):
    """R - V with returns to the end of the episode and no bootstrap; of two critics the ``combine`` of both: "max" (the
    paper's), "sum" (A of the whole reward, unbiased: R + Rˣ is its return) or "state" (the first alone).

    Steps of an episode that is still going on at the end of a row have no return yet and don't count; ValueError where no
    episode ended.
    """

    needs: ClassVar[tuple[str, ...]] = ("rewards", "value", "discount", "terminated", "truncated")
    gives: ClassVar[tuple[str, ...]] = ("advantage", "returns")
    combine: str = "max"

    def __post_init__(self) -> None:
        if self.combine not in COMBINE:
            raise ValueError(f"combine must be one of {', '.join(COMBINE)}, got {self.combine!r}")

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        ended = batch.terminated | batch.truncated
        mask = batch.mask & (ended.flip(1).cumsum(1).flip(1) > 0)
        if not mask.any():
            raise ValueError(
                f"no episode ended within the {mask.shape[1]} steps of a collection, and Monte-Carlo returns need whole "
                "episodes: set collector.steps to a multiple of the episode's length"
            )
        discount = batch.discount * ~ended
        if batch.rewards.dim() == 3:
            discount = discount[..., None].expand_as(batch.rewards)
        returns = discounted_returns(batch.rewards, discount)
        advantage = returns - batch.value
        if advantage.dim() == 3:
            advantage = COMBINE[self.combine](advantage)
        return batch.replace(advantage=advantage * mask, returns=returns, mask=mask)


class Recent:
    """The last collections, credited."""

    def __init__(self, blocks: int) -> None:
        self.batches: deque[Rollouts] = deque(maxlen=blocks)

    def state_dict(self) -> dict[str, Any]:
        columns = [{f.name: getattr(batch, f.name) for f in fields(Rollouts)} for batch in self.batches]
        return {"batches": [{k: v for k, v in one.items() if isinstance(v, Tensor)} for one in columns]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches.clear()
        self.batches.extend(Rollouts(**one, batch_size=[len(one["mask"])]) for one in state["batches"])


@dataclass(frozen=True, kw_only=True)
class Reuse(Credit):
    """The batch with those of the last ``blocks`` - 1 updates, as they were when they were new."""

    blocks: int = 5

    def memory(self) -> Recent:
        return Recent(self.blocks)

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        assert isinstance(memory, Recent)
        memory.batches.append(batch)
        joined: Any = torch.cat(list[Any](memory.batches))
        return cast("Rollouts", joined)


@dataclass(frozen=True, kw_only=True)
class EachChoice(Credit):
    """Rows of one step whose action has A choices → rows of A decisions [N, A], which share the state [N, 1, S], its values
    and its advantage; the last part, behind ``SingleSteps``. Single choices stay as they are."""

    needs: ClassVar[tuple[str, ...]] = ("advantage", "value", "returns", "behaviour_logp")

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        if batch.behaviour_logp.dim() == 2:
            return batch
        several = {name: getattr(batch, name)[:, 0] for name in ("actions", "behaviour_logp", "entropy")}
        shared = {name: getattr(batch, name) for name in ("mask", "advantage", "value", "returns")}
        count = batch.actions.shape[-1]
        expanded = {name: column.expand(-1, count, *column.shape[2:]) for name, column in shared.items()}
        return batch.replace(**several, **expanded)


# -- policy


class EachMachine(MultiCategoricalPolicy):
    """Log-probabilities and entropies [.., A] of the single choices, in place of their sums."""

    def logp_entropy(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        return categorical(self.logits(outputs.view(*actions.shape[:-1], -1)), actions)


@dataclass(frozen=True, kw_only=True)
class MachineMLP(MLP):
    """An ``MLP`` that tells the log-probability of each choice of an action."""

    several: ClassVar[type[MultiCategoricalPolicy]] = EachMachine


def method() -> OnPolicy:
    """The published settings; set ``collector.steps`` to the length of an episode (lot-sizing: ``horizon``)."""
    adam = Adam(learning_rate=5.5e-4, gradient_clip=None)
    return OnPolicy(
        policy=MachineMLP(hidden=(128, 128)),
        collector=PostDecision(environments=4, steps=50, gamma=0.9),
        critic=PostDecisionCritic(optimizer=replace(adam, learning_rate=1e-3)),
        credit=(MonteCarloAdvantage(), SingleSteps(), Reuse(), EachChoice()),
        objective=PolicyGradient(
            stabilization=RatioClip(low=0.2, high=0.2), regularizers=(EntropyBonus(coefficient=0.001),)
        ),
        optimizer=adam,
        epochs=40,
    )


def summed() -> OnPolicy:
    """The advantage of the whole reward, from both critics."""
    base = method()
    return replace(base, credit=(MonteCarloAdvantage(combine="sum"), *base.credit[1:]))


def one_critic() -> OnPolicy:
    """One network for both states."""
    base = method()
    return replace(base, critic=PostDecisionCritic(optimizer=Adam(learning_rate=1e-3, gradient_clip=None), shared=True))


def ppo() -> OnPolicy:
    """The baseline: the same PPO with one critic of the whole reward, and no post-decision states."""
    base = method()
    collector = Vector(environments=4, steps=50, gamma=0.9)
    return replace(base, collector=collector, critic=Critic(optimizer=Adam(learning_rate=1e-3, gradient_clip=None)))
