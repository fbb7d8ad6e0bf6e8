"""C-MORL: a Pareto front from a few policies, each pushed along single objectives under constraints (arXiv 2410.02236).

Stage 1 trains one policy for each preference ω of a coarse grid, with PPO on the advantage ω·A of a vector critic.
Stage 2 repeats: take the least crowded policies of the front; from a copy of each, and for each objective l, a few
updates of
    maximise G_l   subject to   G_j ≥ β G_j(start) for all j ≠ l,
by the interior-point loss  -(1/t) Σ_j log(G_j - β G_j(start))  beside PPO's, or by CPO. Every policy on the way is
evaluated and joins the archive where nothing dominates it. For a preference ω the policy with the best ω·G acts.

Chosen where the paper is silent: G_j in the constraint is what episodes of the batch returned, plus the first-order
gain H · mean((clipped ratio - 1) · A_j) with H steps an episode (a row of the batch is one at least), so that the
barrier has the gradient of G_j; the published code multiplies the ratio with the batch's MEAN return, whose gradient is
zero in expectation. G_j(start) is measured on the first batch and kept, as in the paper; ``drifting`` takes each
batch's own mean as in the code. Negative returns: the bound is G - (1 - β) |G|, which is βG for positive ones. Where
every vector of the front has been selected once, the record of selections is cleared.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policyopt.credit.scaling import RewardScaling, SingleSteps
from policyopt.credit.weighted import ConstrainedAdvantage, WeightedAdvantage
from policyopt.learners.constrained import ConstrainedOnPolicy
from policyopt.learners.critic import Critic
from policyopt.learners.on_policy import OnPolicy, OnPolicyLearner
from policyopt.learners.update import Adam, Linear, Schedule
from policyopt.models.archive import Archive, Candidate
from policyopt.models.control import MLP
from policyopt.objectives.barrier import Barrier
from policyopt.objectives.pareto import (
    Front,
    crowding_distance,
    expected_utility,
    hypervolume,
    simplex_grid,
    sparsity,
)
from policyopt.objectives.policy_gradient import PolicyGradient, RatioClip
from policyopt.problems.control.environments import episode_returns
from policyopt.rollouts.vector import Vector
from policyopt.types import Budget, Clock, Part, generator

FAMILY = "control"
VARIANTS = ("cpo",)


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
        self.clock = Clock(seed=seed)
        self.members = [self._member(i, w) for i, w in enumerate(simplex_grid(objectives, method.spacing))]
        self.policy = Archive(self.members[0].policy.frozen_copy(), objectives, method.capacity, method.reference)
        self.test = np.random.default_rng(0).dirichlet(np.ones(objectives), 200)
        self.selected: list[Front] = []  # the vectors that were selected in former rounds
        self.queue: list[tuple[Candidate, int]] = []  # (start, objective) that this round has still to extend
        self.live: OnPolicyLearner | None = None  # extends the first of them

    def _member(self, i: int, weights: Front) -> OnPolicyLearner:
        given, base = tuple(map(float, weights)), self.method.base
        credit = tuple(replace(p, weights=given) if isinstance(p, WeightedAdvantage) else p for p in base.credit)
        return replace(base, credit=credit).learner(self.problem, seed=self._seed("member", i))

    def _seed(self, what: str, number: int) -> int:
        return int(torch.randint(2**31, (), generator=generator(self.clock.seed, what, number)))

    def step(self) -> dict[str, Tensor | float]:
        first = self.clock.share < self.method.initial_share
        metrics = self._initialize() if first else self._extend()
        metrics |= self._measures()
        self.clock.advance(metrics, self.budget)
        return metrics

    def _initialize(self) -> dict[str, Tensor | float]:
        """Stage 1: the policies take turns."""
        member = self.members[self.clock.step % len(self.members)]
        member.clock.share = self.clock.share / self.method.initial_share
        metrics = member.step()
        evaluated = member.clock.step % self.method.evaluate_every == 0
        return {**metrics, "stage": 1.0, "evaluation/env_steps": self._consider(member) if evaluated else 0.0}

    def _extend(self) -> dict[str, Tensor | float]:
        """Stage 2: the next update of the first entry of the queue, which is filled anew when it is empty."""
        spent = sum(self._consider(member) for member in self.members)
        self.members = []
        if self.live is None:
            self.queue = self.queue or self._select()
            self.live = self._extension(self.queue[0][1])
            _restore(self.live, self.queue[0][0].state)
        metrics = self.live.step()
        spent += self._consider(self.live)
        if self.live.clock.step == self.method.updates:
            self.live, self.queue = None, self.queue[1:]
        return {**metrics, "stage": 2.0, "evaluation/env_steps": spent}

    def _extension(self, objective: int) -> OnPolicyLearner:
        weights = tuple(float(i == objective) for i in range(self.objectives))
        method = self.method.extension.apply(self.method.base, weights)
        return method.learner(self.problem, seed=self._seed("extension", self.clock.step))

    def _select(self) -> list[tuple[Candidate, int]]:
        """The next starts: those that the selection puts first among those that were never selected."""
        front = self.policy.front
        if not len(front):
            raise ValueError(f"no policy of stage 1 exceeds the reference point {self.method.reference}: lower it")
        order = self.method.selection(front, self.clock.generator("selection"))
        fresh = [i for i in order if not any(np.array_equal(front[i], former) for former in self.selected)]
        if not fresh:
            self.selected, fresh = [], order
        picked = fresh[: self.method.selected]
        self.selected += [front[i] for i in picked]
        return [(self.policy.candidates[i], objective) for i in picked for objective in range(self.objectives)]

    def _consider(self, learner: OnPolicyLearner) -> float:
        """Evaluates the policy and offers it to the archive; returns the environment steps that this took.

        All are evaluated from the same start states.
        """
        environment = self.problem.make(self.method.episodes, self._seed("evaluation", 0))
        rng = generator(self.clock.seed, "evaluation")
        returns, length = episode_returns(environment, learner.policy.act, rng, gamma=self.method.evaluation_gamma)
        self.policy.insert(returns.mean(0), learner.policy, lambda: _snapshot(learner))
        return float(length.sum())

    def _measures(self) -> dict[str, float]:
        front, reference = self.policy.front, self.method.reference
        if not len(front):
            return {"front/size": 0.0}
        volume = {} if reference is None else {"front/hypervolume": hypervolume(front, reference)}
        utility = expected_utility(front, self.test)
        spacing = sparsity(front)
        return {"front/size": len(front), "front/expected_utility": utility, "front/sparsity": spacing, **volume}

    def state_dict(self) -> dict[str, Any]:
        return {
            "clock": self.clock.state_dict(),
            "archive": self.policy.state_dict(),
            "members": [member.state_dict() for member in self.members],
            "selected": [torch.from_numpy(vector) for vector in self.selected],
            "queue": [{**start.state_dict(), "objective": objective} for start, objective in self.queue],
            "live": None if self.live is None else self.live.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clock.load_state_dict(state["clock"])
        self.policy.load_state_dict(state["archive"])
        self.members = self.members[: len(state["members"])]
        for member, saved in zip(self.members, state["members"], strict=True):
            member.load_state_dict(saved)
        self.selected = [vector.numpy().copy() for vector in state["selected"]]
        self.queue = [(self.policy.candidate(saved), saved["objective"]) for saved in state["queue"]]
        self.live = None
        if state["live"] is not None:
            self.live = self._extension(self.queue[0][1])
            self.live.load_state_dict(state["live"])


def _snapshot(learner: OnPolicyLearner) -> dict[str, Any]:
    """What a copy needs to go on training from here, in environments of its own."""
    state = learner.state_dict()
    scalings = [f"credit.{i}" for i, part in enumerate(learner.method.credit) if isinstance(part, RewardScaling)]
    moments = {path: state["memories"][path] for path in scalings if state["memories"][path]}  # empty before a step
    fresh = {path: {**m, "running": torch.zeros_like(m["running"])} for path, m in moments.items()}
    return deepcopy({name: state[name] for name in ("policy", "optimizer", "critic")} | {"memories": fresh})


def _restore(learner: OnPolicyLearner, snapshot: dict[str, Any]) -> None:
    own, taken = learner.state_dict(), deepcopy(snapshot)
    learner.load_state_dict({**own, **taken, "memories": {**own["memories"], **taken["memories"]}})


def method() -> CMORL:
    """The published settings for two objectives; for more: a wider ``spacing`` (0.5 for three) and ``selected=6``."""
    adam = Adam(learning_rate=3e-4, schedule=Linear(), gradient_clip=0.5, epsilon=1e-5)
    base = OnPolicy(
        policy=MLP(hidden=(64, 64), standardize=True),
        collector=Vector(environments=8, steps=512, gamma=0.995),
        critic=Critic(optimizer=adam, clip=0.2),
        credit=(RewardScaling(), WeightedAdvantage(lam=0.95), SingleSteps()),
        objective=PolicyGradient(stabilization=RatioClip(low=0.2, high=0.2)),
        optimizer=adam,
        epochs=10,
        minibatches=32,
    )
    return CMORL(base=base)


def cpo() -> CMORL:
    """Extension by constrained policy optimization."""
    return replace(method(), extension=TrustRegion())
