"""CAMEL's claim: a written, suboptimal policy that masks TD3's actions early on is surpassed where TD3 alone finds nothing.

The mountain car in continuous time is deceptive: doing nothing costs nothing, and only a long swing reaches the goal. The
rule that serves as a prior reaches it in four episodes of ten. On the pendulum, which TD3 learns by itself, a controller
of the wrong sign is the test of robustness. Masks, schedule and updates are a reconstruction (see ``methods/camel.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from policyopt.learners.off_policy import OffPolicy, Round
from policyopt.learners.update import Adam
from policyopt.methods import camel, td3
from policyopt.models.priors import Batched, PriorPolicy
from policyopt.problems.control.environments import Array, GymnasiumProblem
from policyopt.problems.control.rules import mountain_car, pendulum
from policyopt.rollouts.replay import Interaction
from policyopt.studies.claim import Claim, Metrics, paired_difference
from policyopt.training.loop import Cadence, run
from policyopt.types import Budget, generator

CAR, PENDULUM = "MountainCarContinuous-v0", "Pendulum-v1"
STEPS = {CAR: 20_000, PENDULUM: 10_000}
ENVIRONMENTS = {CAR: 4, PENDULUM: 2}  # a step of each for every update
WARM_UP, EVALUATIONS = 1000, 10
SMOKE_STEPS, SMOKE_WARM_UP = 40, 20
WIDTH = 64
RANGE = 1100.0  # of the pendulum's returns, from uniform actions (about −1250) to the best (about −150)


def reduced(method: OffPolicy) -> OffPolicy:
    """The method with networks of two layers of 64 units, one rate and batches of 128: the same for every arm."""
    adam = Adam(learning_rate=1e-3, gradient_clip=None)
    updates: list[Any] = [
        replace(update, model=replace(update.model, width=WIDTH), optimizer=adam)  # type: ignore[attr-defined, call-arg]
        for update in method.updates()
    ]
    return replace(method, rounds=(Round(updates=tuple(updates)),), batch=128)


def with_prior(prior: Any, annealing: camel.Annealing) -> OffPolicy:
    return replace(reduced(camel.method()), acting=camel.Masked(priors=(Batched(prior),)), annealing=annealing)  # type: ignore[call-arg]


def wrong_sign(observations: Array) -> Array:
    """The pendulum's rule, turned around."""
    return -pendulum(observations)


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A method under the budget of an environment, evaluated without a mask: the last mean return of ten episodes, and the
    mean of its curve over environment steps (``auc``)."""

    method: OffPolicy
    id: str = CAR

    def __call__(self, seed: int, smoke: bool) -> Metrics:
        collector = Interaction(environments=ENVIRONMENTS[self.id], warm_up=SMOKE_WARM_UP if smoke else WARM_UP)
        problem = GymnasiumProblem(id=self.id, episodes=1 if smoke else 10)
        result = run(
            replace(self.method, collector=collector),
            problem,
            budget=Budget(env_steps=SMOKE_STEPS if smoke else STEPS[self.id]),
            seed=seed,
            cadence=Cadence(evaluations=1 if smoke else EVALUATIONS),
        )
        steps, returns = result.curve("eval/return")
        area = float(np.trapezoid(returns, steps) / (steps[-1] - steps[0]))
        return {"final": returns[-1], "auc": area}


@dataclass(frozen=True, kw_only=True)
class Prior:
    """The rule alone, over a hundred episodes."""

    def __call__(self, seed: int, smoke: bool) -> Metrics:
        problem = GymnasiumProblem(id=CAR, episodes=1 if smoke else 100)
        act = PriorPolicy(Batched(mountain_car), problem.spaces).act
        earned = problem.evaluate(act, generator(seed, "prior"))["eval/return"]
        return {"final": earned, "auc": earned}


TD3 = reduced(td3.method())
FALLING, KEPT = camel.LinearAnnealing(until=0.3), camel.Annealing()

claim = Claim(
    slug="camel",
    paper="2502.11896",
    text=(
        "Masked by a suboptimal rule early on, TD3 solves the mountain car and surpasses the rule, where TD3 alone finds "
        "nothing; with a wrong rule on the pendulum it ends as good as TD3."
    ),
    arms={
        "CAMEL": Learned(method=with_prior(mountain_car, FALLING)),
        "TD3": Learned(method=TD3),
        "prior": Prior(),
        "CAMEL, mask kept": Learned(method=with_prior(mountain_car, KEPT)),
        "CAMEL, wrong prior, pendulum": Learned(method=with_prior(wrong_sign, FALLING), id=PENDULUM),
        "TD3, pendulum": Learned(method=TD3, id=PENDULUM),
        "CAMEL, good prior, pendulum": Learned(method=with_prior(pendulum, FALLING), id=PENDULUM),
    },
    gates=(
        paired_difference("auc", "CAMEL", "TD3", above=0.0),
        paired_difference("final", "CAMEL", "prior", above=0.0),
        paired_difference("final", "CAMEL, wrong prior, pendulum", "TD3, pendulum", above=-0.1 * RANGE),
        paired_difference("auc", "CAMEL, good prior, pendulum", "TD3, pendulum", above=0.0, required=False),
        paired_difference("final", "CAMEL", "CAMEL, mask kept", above=0.0, required=False),
    ),
    seeds=range(5),
    budget=(
        "20,000 environment steps an arm and seed on the mountain car, four for each update, and 10,000 on the pendulum, "
        "two for each update; 1000 of them warm-up"
    ),
    tuning=(
        "one setting for all arms (two layers of 64, rate 1e-3, batch 128, half-width 0.4, the mask gone after 30% of the "
        "steps), fixed beforehand; looked at once on seed 100: one try an arm"
    ),
)
