"""MDPO's claim: several gradient steps on one proximal objective do what a hard trust region does.

On-policy, on CartPole: MDPO with ten and with one gradient step, TRPO and PPO have the same networks, critic, credit and
environment steps. Off-policy, on Pendulum: MDPO and SAC at one fixed temperature have the same networks, rate and updates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from policyopt.learners.acting import Acting
from policyopt.learners.critic import Critic
from policyopt.learners.off_policy import LogTemperature, OffPolicy, Round, Temperature
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.update import Adam, Linear
from policyopt.methods import mdpo, ppo, sac, trpo
from policyopt.problems.control.environments import GymnasiumProblem
from policyopt.reports.figures import arm_points
from policyopt.rollouts.replay import Interaction
from policyopt.rollouts.vector import Vector
from policyopt.studies.claim import Claim, Results, paired_difference, paired_log_ratio
from policyopt.training.loop import Cadence, run
from policyopt.types import Budget

STEPS, SMOKE_STEPS = 30_000, 2_048
OFF_STEPS, SMOKE_OFF_STEPS, WARM_UP = 8_000, 1_010, 1_000
TEMPERATURE = 0.2
TENTH = 145.0  # a tenth of the range of Pendulum's returns, [-1600, -150]


def rate(learning_rate: float) -> Adam:
    return Adam(learning_rate=learning_rate, schedule=Linear(), gradient_clip=0.5, epsilon=1e-5)


def on_cartpole(method: OnPolicy, learning_rate: float = 1e-3, **settings: Any) -> OnPolicy:
    """The method at a collection of 1024 steps, with the critic that all arms have."""
    return replace(
        method,
        collector=Vector(environments=8, steps=128, gamma=0.99),
        critic=Critic(optimizer=rate(1e-3), clip=0.2),
        minibatches=8,
        optimizer=rate(learning_rate),
        **settings,
    )


@dataclass(frozen=True, kw_only=True)
class OnCartPole:
    """``auc``: the mean over the run of what episodes returned while learning."""

    method: OnPolicy

    def __call__(self, seed: int, smoke: bool) -> dict[str, float]:
        budget = Budget(env_steps=SMOKE_STEPS if smoke else STEPS)
        trained = run(
            self.method,
            GymnasiumProblem(id="CartPole-v1"),
            budget=budget,
            seed=seed,
            cadence=Cadence(evaluations=1),
        )
        steps, returns = trained.curve("episode/return", "spent/env_steps")
        return {"auc": float(np.trapezoid(returns, steps) / (steps[-1] - steps[0])) if len(steps) > 1 else returns[0]}


class FixedTemperature(Acting):
    """Acts with the actor, beside a temperature that nothing trains."""

    def modules(self, problem: Any, policy: Any) -> dict[str, nn.Module]:
        return {**super().modules(problem, policy), "temperature": LogTemperature(TEMPERATURE)}


def on_pendulum(method: OffPolicy, **settings: Any) -> OffPolicy:
    """The method with networks of two layers of 64, one update for two steps; ``settings`` are the mirror actor's."""
    updates: list[Any] = [update for update in method.updates() if not isinstance(update, Temperature)]
    small = [
        replace(update, optimizer=Adam(learning_rate=1e-3, gradient_clip=None), model=replace(update.model, width=64))
        for update in updates
    ]
    made = tuple(replace(u, **settings) if isinstance(u, mdpo.MirrorPolicy) else u for u in small)
    return replace(method, rounds=(Round(updates=made),), collector=Interaction(environments=2, warm_up=WARM_UP))


@dataclass(frozen=True, kw_only=True)
class OnPendulum:
    """``final``: the mean return of 20 greedy episodes at the end."""

    method: OffPolicy

    def __call__(self, seed: int, smoke: bool) -> dict[str, float]:
        budget = Budget(env_steps=SMOKE_OFF_STEPS if smoke else OFF_STEPS)
        problem = GymnasiumProblem(id="Pendulum-v1", episodes=2 if smoke else 20)
        trained = run(self.method, problem, budget=budget, seed=seed, cadence=Cadence(evaluations=1))
        return {"final": trained.last("eval/return")}


CARTPOLE = {
    "MDPO, m = 10": OnCartPole(method=on_cartpole(mdpo.method(), 3e-3)),
    "MDPO, m = 1": OnCartPole(method=on_cartpole(mdpo.method(), 3e-3, steps=1)),
    "TRPO": OnCartPole(method=on_cartpole(trpo.method())),
    "PPO": OnCartPole(method=on_cartpole(ppo.control())),
}
PENDULUM = {
    "off, m = 100": OnPendulum(method=on_pendulum(mdpo.off(), steps=100)),
    "off, m = 1": OnPendulum(method=on_pendulum(mdpo.off(), steps=1)),
    "SAC": OnPendulum(method=replace(on_pendulum(sac.method()), acting=FixedTemperature())),
}


def figure(results: Results) -> Figure:
    """The seeds of every arm, CartPole and Pendulum apart."""
    panels: dict[str, dict[str, Any]] = {"auc": {**CARTPOLE}, "final": {**PENDULUM}}
    return arm_points(
        {m: {arm: list(results.values(m, arm)) for arm in results.arms if arm in arms} for m, arms in panels.items()}
    )


claim = Claim(
    slug="mdpo",
    paper="2005.09814",
    text=(
        "Several gradient steps on MDPO's proximal objective learn more than one step, and no less than TRPO's hard "
        "constraint; off-policy, MDPO ends no worse than SAC."
    ),
    arms={**CARTPOLE, **PENDULUM},
    gates=(
        paired_difference("auc", "MDPO, m = 10", "MDPO, m = 1", above=0.0),
        paired_log_ratio("auc", "MDPO, m = 10", "TRPO", above=0.9),
        paired_difference("final", "off, m = 100", "SAC", above=-TENTH),
        paired_difference("final", "off, m = 1", "SAC", above=-TENTH),
        paired_log_ratio("auc", "MDPO, m = 10", "PPO", above=0.9, required=False),
        paired_difference("final", "off, m = 100", "SAC", above=0.0, required=False),
    ),
    figure=figure,
    seeds=range(5),
    budget="30k environment steps an arm and seed on CartPole; on Pendulum 8k, with one update for two steps",
    tuning=(
        "on seed 100, three tries an arm on CartPole: rates 3e-4, 1e-3 and 3e-3, for TRPO radii 0.003, 0.01 and 0.03; on "
        "Pendulum one setting for all arms, fixed beforehand"
    ),
)
