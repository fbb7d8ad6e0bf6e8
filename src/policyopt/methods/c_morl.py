"""C-MORL: a Pareto front from a few policies, each pushed along single objectives under constraints (arXiv 2410.02236).

Stage 1 trains one policy for each preference ω of a coarse grid, with PPO on the advantage ω·A of a vector critic. Stage 2
repeats: take the least crowded policies of the front; from a copy of each, and for each objective l, a few updates of
    maximise G_l   subject to   G_j ≥ β G_j(start) for all j ≠ l,
by the interior-point loss  -(1/t) Σ_j log(G_j - β G_j(start))  beside PPO's, or by CPO. Every policy on the way is
evaluated and joins the archive where nothing dominates it. For a preference ω the policy with the best ω·G acts.

Chosen where the paper is silent: G_j in the constraint is what episodes of the batch returned, plus the first-order gain
H · mean((clipped ratio - 1) · A_j) with H steps an episode (a row of the batch is one at least), so that the barrier has the
gradient of G_j; the published code multiplies the ratio with the batch's MEAN return, whose gradient is zero in expectation.
G_j(start) is measured on the first batch and kept, as in the paper; ``drifting`` takes each batch's own mean as in the code.
Negative returns: the bound is G - (1 - β) |G|, which is βG for positive ones. Where every vector of the front has been selected
once, the record of selections is cleared.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from policyopt.credit.groups import Credit
from policyopt.credit.returns import generalized_advantage, whitened
from policyopt.credit.scaling import RewardScaling, SingleSteps, with_scores
from policyopt.learners.constrained import ConstrainedOnPolicy
from policyopt.learners.critic import Critic
from policyopt.learners.on_policy import OnPolicy, OnPolicyLearner
from policyopt.learners.update import Adam, Linear, Schedule
from policyopt.models.archive import Archive, Candidate
from policyopt.models.control import MLP
from policyopt.objectives.pareto import (
    Front,
    crowding_distance,
    expected_utility,
    hypervolume,
    simplex_grid,
    sparsity,
)
from policyopt.objectives.policy_gradient import PolicyGradient, RatioClip, log_ratio
from policyopt.problems.control.environments import episode_returns
from policyopt.rollouts.vector import Vector
from policyopt.types import Budget, Clock, Loss, Outputs, Part, Rollouts, generator

FAMILY = "control"
VARIANTS = ("cpo",)

# -- advantages and constraints


def relaxed(returns: Tensor, beta: float) -> Tensor:
    """The bound β G for positive returns G [K], and below G for negative ones too: G - (1 - β) |G|."""
    return returns - (1.0 - beta) * returns.abs()


def log_barrier(ratio: Tensor, gain: Tensor, margin: Tensor, t: float, floor: float = 1e-3) -> Tensor:
    """-(1/t) Σ_j log(max(margin_j + mean((ratio - 1) gain_j), floor)), the interior-point penalty.

    ratio [B] (clipped), gain [B, J], margin [J] = G_j - bound_j of the policy that collected. With gain_j = G_j this is the
    margin of ratio · G_j. Below ``floor`` there is no gradient: a constraint that is broken is not mended.
    """
    slack = margin + ((ratio - 1.0)[:, None] * gain).mean(0)
    return -slack.clamp(min=floor).log().sum() / t


@dataclass(frozen=True, kw_only=True)
class WeightedAdvantage(Credit):
    """Advantage ω·A, standardized over the batch, from a vector critic's values; ``returns`` [N, T, K] are its targets.

    Rewards may have been scaled (``scores["reward_scale"]``): weights refer to the original ones.
    """

    needs: ClassVar[tuple[str, ...]] = ("rewards", "value", "next_value", "discount", "terminated", "truncated")
    gives: ClassVar[tuple[str, ...]] = ("advantage", "returns")
    weights: tuple[float, ...] = ()
    lam: float = 0.95

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        batch, vector = self.vector(batch)
        weights = torch.tensor(self.weights, dtype=vector.dtype, device=vector.device)
        return batch.replace(advantage=whitened(vector @ weights, batch.mask))

    def vector(self, batch: Rollouts) -> tuple[Rollouts, Tensor]:
        """The batch with ``returns``, and advantages [N, T, K] on the scale of the original rewards."""
        rewards, value = batch.rewards, batch.value
        assert rewards is not None and value is not None and batch.terminated is not None
        if rewards.dim() != 3 or rewards.shape[2] != len(self.weights):
            raise ValueError(f"{len(self.weights)} weights need rewards [N, T, {len(self.weights)}], got {rewards.shape}")
        discount, continues = (
            column[..., None].expand_as(rewards) for column in (batch.discount, ~(batch.terminated | batch.truncated))
        )
        advantage = generalized_advantage(rewards, value, batch.next_value, discount, continues, self.lam)
        return batch.replace(returns=advantage + value), advantage * _scale(batch)[:, None]


class FirstReturns:
    """The returns [K] of the first batch."""

    def __init__(self) -> None:
        self.returns: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"returns": self.returns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.returns = state["returns"]


@dataclass(frozen=True, kw_only=True)
class ConstrainedAdvantage(WeightedAdvantage):
    """Advantage of one objective (the weight that is 1); ``scores["gain"]`` [N, T, K-1] and ``scores["margin"]``
    [N, K-1] of the others, which are to keep ``beta`` of what they returned in the first batch (``drifting``: in this)."""

    gives: ClassVar[tuple[str, ...]] = ("advantage", "returns", "scores")
    beta: float = 0.9
    drifting: bool = False

    def memory(self) -> FirstReturns:
        return FirstReturns()

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        assert isinstance(memory, FirstReturns) and batch.terminated is not None and batch.truncated is not None
        made, others = super().__call__(batch, memory), [w == 0.0 for w in self.weights]
        advantage = self.vector(batch)[1][..., others]
        episodes = max(int((batch.terminated | batch.truncated).sum()), len(batch))
        returns = (batch.rewards * _scale(batch)[:, None]).sum((0, 1))[others] / episodes
        memory.returns = returns if memory.returns is None or self.drifting else memory.returns
        margin = returns - relaxed(memory.returns, self.beta)
        gain = advantage * (batch.mask.numel() / episodes)
        return with_scores(made, gain=gain, margin=margin.expand(len(batch), -1).clone())


def _scale(batch: Rollouts) -> Tensor:
    """[N, K]: what rewards were divided by."""
    assert batch.rewards is not None
    scaled = batch.scores is not None and "reward_scale" in batch.scores.keys()  # noqa: SIM118 (a TensorDict)
    scale: Tensor = batch.scores["reward_scale"] if scaled else torch.ones_like(batch.rewards[:, 0])
    return scale


@dataclass(frozen=True, kw_only=True)
class Barrier(PolicyGradient):
    """PPO's loss and the log barrier of the other objectives, on whole minibatches of single steps."""

    t: float = 20.0
    clip: float = 0.2

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Loss:
        assert outputs.logp is not None and batch.share is not None
        if float(batch.share[..., 1].sum()) < 1.0 - 1e-3:
            raise ValueError("the barrier needs a whole minibatch at once: set micro_batch to the minibatch or more")
        loss = super().__call__(outputs, batch)
        ratio = log_ratio(outputs.logp, batch).exp().clamp(1.0 - self.clip, 1.0 + self.clip)[:, 0]
        barrier = log_barrier(ratio, batch.scores["gain"], batch.scores["margin"][0], self.t)
        return Loss(loss.value + barrier, {**loss.metrics, "loss/barrier": barrier.detach()})


# -- the parts that are the paper's


@dataclass(frozen=True, kw_only=True)
class Extension(Part):
    """How one objective is raised while the others are kept: ``apply`` makes it from stage 1's method."""

    beta: float = 0.9
    drifting: bool = False

    def apply(self, base: OnPolicy, weights: tuple[float, ...]) -> OnPolicy:
        raise NotImplementedError

    def constrained(self, base: OnPolicy, weights: tuple[float, ...]) -> OnPolicy:
        """Stage 1's method with the constrained advantage, at a constant learning rate."""
        plain = next(part for part in base.credit if isinstance(part, WeightedAdvantage))
        part = ConstrainedAdvantage(weights=weights, lam=plain.lam, beta=self.beta, drifting=self.drifting)
        critic = base.critic and replace(base.critic, optimizer=replace(base.critic.optimizer, schedule=Schedule()))
        return replace(
            base,
            credit=tuple(part if p is plain else p for p in base.credit),
            critic=critic,
            optimizer=replace(base.optimizer, schedule=Schedule()),
        )


@dataclass(frozen=True, kw_only=True)
class InteriorPoint(Extension):
    """C-MORL-IPO: the log barrier beside PPO's loss."""

    t: float = 20.0

    def apply(self, base: OnPolicy, weights: tuple[float, ...]) -> OnPolicy:
        assert isinstance(base.objective, PolicyGradient)
        objective = Barrier(stabilization=base.objective.stabilization, t=self.t)
        return replace(self.constrained(base, weights), objective=objective)


@dataclass(frozen=True, kw_only=True)
class TrustRegion(Extension):
    """C-MORL-CPO: one constrained step in a trust region of ``radius``."""

    radius: float = 0.01
    damping: float = 0.1

    def apply(self, base: OnPolicy, weights: tuple[float, ...]) -> OnPolicy:
        made = self.constrained(base, weights)
        names = OnPolicy.__dataclass_fields__
        return ConstrainedOnPolicy(
            **{name: getattr(made, name) for name in names}, radius=self.radius, damping=self.damping
        )


@dataclass(frozen=True, kw_only=True)
class LeastCrowded(Part):
    """Selects the candidates with the largest crowding distance."""

    def __call__(self, front: Front, rng: torch.Generator) -> list[int]:
        """front [F, K] → all its indices, the first choice first."""
        return [int(i) for i in np.argsort(-crowding_distance(front), kind="stable")]


@dataclass(frozen=True, kw_only=True)
class AtRandom(LeastCrowded):
    """Selects candidates at random."""

    def __call__(self, front: Front, rng: torch.Generator) -> list[int]:
        return [int(i) for i in torch.randperm(len(front), generator=rng)]


# -- method and learner


@dataclass(frozen=True, kw_only=True)
class CMORL:
    """``base`` is stage 1's PPO (its weights are filled in); stage 1 takes ``initial_share`` of the budget.

    spacing: of the grid of preferences; selected: policies a round of stage 2; updates: from each, for each objective;
    evaluate_every: updates of stage 1 between evaluations (in stage 2 every update is evaluated); evaluations play
    ``episodes`` greedily and discount by ``evaluation_gamma``; reference: the point that archived policies exceed.
    """

    base: OnPolicy
    extension: Extension = InteriorPoint()
    selection: LeastCrowded = LeastCrowded()
    initial_share: float = 2 / 3
    spacing: float = 0.2
    selected: int = 5
    updates: int = 20
    capacity: int = 200
    evaluate_every: int = 5
    episodes: int = 10
    evaluation_gamma: float = 0.99
    reference: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if min(self.selected, self.updates, self.capacity, self.evaluate_every, self.episodes) < 1:
            raise ValueError(f"selected, updates, capacity, evaluate_every and episodes must be positive, got {self}")
        if not 0 < self.initial_share <= 1:
            raise ValueError(f"initial_share must be in (0, 1], got {self.initial_share}")

    def learner(self, problem: Any, policy: Any = None, *, seed: int, budget: Budget | None = None) -> CMORLLearner:
        """Raises ValueError for a problem with a scalar reward, or a given policy (the method makes a set of them)."""
        objectives = getattr(getattr(problem, "spaces", None), "objectives", 0)
        if objectives < 1 or policy is not None:
            raise ValueError(
                f"c-morl makes its own set of policies for a problem with a vector reward, such as point-mass or "
                f"gym:mo-hopper-v5; got {getattr(problem, 'name', problem)!r} with {objectives} objectives"
                f"{' and a policy' if policy is not None else ''}"
            )
        if budget is None:
            raise ValueError("c-morl divides its budget between two stages: give one")
        return CMORLLearner(self, problem, objectives, seed, budget)


class CMORLLearner:
    """One step: one update of one policy, and its evaluation. ``policy`` is the archive."""

    def __init__(self, method: CMORL, problem: Any, objectives: int, seed: int, budget: Budget) -> None:
        self.method, self.problem, self.objectives, self.budget = method, problem, objectives, budget
        self.clock, self.policy = Clock(seed=seed), Archive(objectives, method.capacity, method.reference)
        self.grid = simplex_grid(objectives, method.spacing)
        self.members = [self._member(i) for i in range(len(self.grid))]
        self.blank = self.members[0].policy.frozen_copy()
        self.chosen: list[Front] = []  # vectors that were selected, in this order
        self.queue: list[tuple[Candidate, int]] = []  # what stage 2 has still to do in this round; first the live one
        self.rounds, self.live = 0, None

    def _member(self, i: int) -> OnPolicyLearner:
        base, weights = self.method.base, tuple(map(float, self.grid[i]))
        credit = tuple(replace(p, weights=weights) if isinstance(p, WeightedAdvantage) else p for p in base.credit)
        return replace(base, credit=credit).learner(self.problem, seed=self._seed("member", i))

    def _seed(self, what: str, number: int) -> int:
        return int(torch.randint(2**31, (), generator=generator(self.clock.seed, what, number)))
