"""RTO's claim: the token reward of a DPO policy makes PPO learn faster than the reward at the end alone.

Strings whose true reward is a sum over tokens, 24 letters long, so that credit is hard to assign; 1500 labelled pairs for DPO
and for the reward model. PPO is the same in all arms. A control adds a random token reward of the same size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from policyopt.credit.groups import Credit
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.reward_model import BradleyTerry
from policyopt.learners.stages import Stages
from policyopt.learners.update import Adam
from policyopt.methods import dpo, rto
from policyopt.methods.rto import TokenReward
from policyopt.objectives.preference import Preference, Sigmoid
from policyopt.problems.language.bigrams import Bigrams
from policyopt.rollouts.language import Groups
from policyopt.rollouts.preferences import Rankings
from policyopt.studies.claim import Claim, Metrics, paired_difference
from policyopt.studies.preferences import Strings
from policyopt.types import Budget, Rollouts, generator

PREFERENCES, UPDATES = 40, 40
STRINGS = Bigrams(train_size=1500, length=24, scale=0.25)
PAIRS = Rankings(prompts=64, held_out_prompts=0)


@dataclass(frozen=True, kw_only=True)
class RandomReward(Credit):
    """A token reward within the same bounds that says nothing: a fixed number for each token and its place."""

    needs = ("rewards",)
    bound: float = 0.05

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        table = (torch.rand(64, 64, generator=generator(0, "random-reward")) * 2 - 1) * self.bound
        places = torch.arange(batch.actions.shape[1])
        return batch.replace(rewards=batch.rewards + table[batch.actions, places] * batch.mask)


@dataclass(frozen=True, kw_only=True)
class Dense:
    """The stages of RTO with these token rewards."""

    dense: tuple[Credit, ...]

    def __call__(self) -> Stages:
        adam = Adam(learning_rate=1e-3)
        training = rto.reinforcement(self.dense)
        critic = training.critic and replace(training.critic, optimizer=adam)
        training = replace(
            training, collector=Groups(prompts=64, samples=1), optimizer=adam, critic=critic, minibatches=2
        )
        made = rto.reinforced(training, Budget(updates=PREFERENCES))
        direct, reward, ppo = made.stages
        fit = BradleyTerry(collector=PAIRS, optimizer=Adam(learning_rate=2e-3))
        return replace(made, stages=(replace(direct, method=preference()), replace(reward, method=fit), ppo))


def preference() -> OnPolicy:
    return replace(
        dpo.method(), collector=PAIRS, objective=Preference(loss=Sigmoid(beta=0.1)), optimizer=Adam(learning_rate=1e-3)
    )


@dataclass(frozen=True, kw_only=True)
class Reinforced:
    """A run of the stages; what counts is what PPO does after both of the others."""

    dense: tuple[Credit, ...]

    def __call__(self, seed: int, smoke: bool) -> Metrics:
        looks = (2 * PREFERENCES + UPDATES) // 10
        arm = Strings(
            method=Dense(dense=self.dense),
            budget=Budget(updates=2 * PREFERENCES + UPDATES),
            problem=STRINGS,
            looks=looks,
        )
        found: Mapping[str, Any] = arm(seed, smoke)
        after = found["curve/reward"][-1 if smoke else -UPDATES // 10 :]
        return {
            "reward": found["reward"],
            "divergence": found["divergence"],
            "auc": sum(after) / len(after),
            "curve/x": [float(10 * i) for i in range(1, len(after) + 1)],
            "curve/reward": after,
        }


claim = Claim(
    slug="rto",
    paper="2404.18922",
    text="At equal rollouts PPO with the token reward of a DPO policy learns faster than PPO with the reward model's score "
    "alone, and ends above DPO.",
    arms={
        "rto": Reinforced(dense=(TokenReward(),)),
        "ppo": Reinforced(dense=()),
        "dpo": Strings(method=preference, budget=Budget(updates=PREFERENCES), problem=STRINGS, looks=2),
        "random token reward": Reinforced(dense=(RandomReward(),)),
    },
    gates=(
        paired_difference("auc", "rto", "ppo", above=0.0),
        paired_difference("reward", "rto", "dpo", above=0.0),
        paired_difference("auc", "random token reward", "ppo", below=0.1, required=False),
        paired_difference("reward", "rto", "ppo", above=0.0, required=False),
    ),
    seeds=range(5),
    budget=f"{UPDATES} steps of 64 rollouts an arm and seed, after {PREFERENCES} updates each of DPO and the reward model",
    tuning="one setting for all arms (rates 1e-3 and 2e-3, β = 0.1), looked at once on seed 100: one try an arm",
    axis="steps of PPO",
)
