"""What the studies of offline methods share: one size for every arm, and an arm that learns from logged walks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from policyopt.learners.acting import network
from policyopt.learners.off_policy import OffPolicy, OffPolicyLearner, Round, first_values
from policyopt.learners.update import Adam
from policyopt.methods import a2pr
from policyopt.models.action_vae import ActionVAE
from policyopt.problems.control.checker import Checker
from policyopt.problems.control.environments import episode_returns
from policyopt.studies.claim import Metrics
from policyopt.training.loop import Cadence, run
from policyopt.types import Budget, generator

UPDATES, SMOKE_UPDATES = 6000, 20
WIDTH, LAYERS, WIDTH_VAE = 64, 2, 128
GAMMA = 0.99


def reduced(method: OffPolicy, learning_rate: float = 3e-4) -> OffPolicy:
    """The method with networks of two layers of 64 units (an autoencoder's 128), batches of 128 and one rate."""
    adam = Adam(learning_rate=learning_rate, gradient_clip=None)
    updates: list[Any] = []
    for update in method.updates():
        model: Any = getattr(update, "model", None)
        width = WIDTH_VAE if update.trains == "vae" else WIDTH
        updates.append(replace(update, model=replace(model, width=width, layers=LAYERS), optimizer=adam))  # type: ignore[call-arg]
    return replace(method, rounds=(Round(updates=tuple(updates)),), batch=128)


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A method on the data set of this seed, for ``updates``; ``good`` is that of ``Checker``."""

    method: OffPolicy
    good: float | None = None
    updates: int = UPDATES

    def __call__(self, seed: int, smoke: bool) -> Metrics:
        problem = Checker(seed=seed, good=self.good, logged=500 if smoke else Checker.logged)
        budget = Budget(updates=SMOKE_UPDATES if smoke else self.updates)
        result = run(self.method, problem, budget=budget, seed=seed, cadence=Cadence(evaluations=2 if smoke else 6))
        steps, returns = result.curve("eval/return")
        assert isinstance(result.learner, OffPolicyLearner)
        final = final_metrics(result.learner, problem, seed)
        return {**final, "curve/x": list(steps), "curve/return": list(returns)}


def final_metrics(learner: OffPolicyLearner, problem: Checker, seed: int) -> dict[str, float]:
    """Of 200 starts that all arms of a seed share: the mean return, and |Q_1(s, π(s)) − discounted return| where the agent
    has values."""
    rng = generator(seed, "final")
    returns, _ = episode_returns(problem.make(200, 10_000 + seed), learner.policy.act, rng)
    found = {"return": float(returns.mean())}
    if "critic" not in learner.agent:
        return found
    environment = problem.make(200, 10_000 + seed)
    observation = torch.from_numpy(environment.observations)
    discounted, _ = episode_returns(environment, learner.policy.act, rng, gamma=GAMMA)
    with torch.no_grad():
        action = learner.policy.act(observation, None, rng, True)[0]
        values = first_values(learner.agent, learner.agent["standardization"](observation), action)
    found |= guidance(learner, seed)
    return {**found, "value_error": float((values - torch.from_numpy(discounted)).abs().mean())}


def guidance(learner: OffPolicyLearner, seed: int) -> dict[str, float]:
    """Of an agent with an autoencoder, on 2000 transitions: the share of states whose target is the generated action, and by
    how much the target's advantage exceeds that of the data's action."""
    agent = learner.agent
    if "vae" not in agent:
        return {}
    batch, rng = learner.memory.sample(2000, generator(seed, "guidance")), generator(seed, "latents")
    seen = batch.observation
    with torch.no_grad():
        generated = network(agent, "vae", ActionVAE).reconstruct(seen, agent["actor"](seen), rng)[0]
    of_data, of_generated = (a2pr.advantage(agent, seen, action) for action in (batch.action, generated))
    gain = torch.maximum(of_data, of_generated) - of_data
    return {"generated_share": float((of_generated >= of_data).float().mean()), "advantage_gain": float(gain.mean())}
