"""P3O's claim: a constant of the prompt in the reward, which means nothing, leaves P3O alone and costs PPO.

Strings behind one of twelve letters, with their true reward; in the shifted arms a number for each letter is added to it, drawn
from N(0, 5²). Responses, epochs, minibatches and the learning rate are the same for all. The frontier is the mean, over 1, 2, 3
and 4 nats of divergence from the imitating policy, of the best reward that was seen on the way within so many nats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from policyopt.credit.returns import GeneralizedAdvantage, ReferencePenalty, RewardAtEnd
from policyopt.learners.annotators import Reference
from policyopt.learners.critic import Critic
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.update import Adam
from policyopt.methods import p3o, ppo
from policyopt.objectives.preference import Preference, Sigmoid
from policyopt.problems.language.bigrams import Bigrams
from policyopt.rollouts.language import Groups
from policyopt.studies.claim import Claim, Metrics, paired_difference
from policyopt.studies.preferences import Strings, frontier
from policyopt.types import Budget

UPDATES, BETA = 40, 0.05
NATS = (1.0, 2.0, 3.0, 4.0)
LETTERS = 12
ADAM = Adam(learning_rate=1e-3)


def twice(made: OnPolicy) -> OnPolicy:
    """Two passes in two minibatches."""
    return replace(made, optimizer=ADAM, epochs=2, minibatches=2)


def pairs(made: OnPolicy) -> OnPolicy:
    """P3O on rewards as they are: nothing is divided by a deviation."""
    assert isinstance(made.objective, p3o.PairwisePolicyGradient)
    objective = replace(made.objective, beta=BETA)
    return twice(replace(made, collector=Groups(prompts=32, samples=2), credit=(), objective=objective))


def joint() -> OnPolicy:
    return pairs(p3o.method())


def separate() -> OnPolicy:
    return pairs(p3o.separate())


def proximal() -> OnPolicy:
    """PPO with the divergence in its token rewards; its critic is not clipped, since it has to learn the letters' numbers."""
    made = replace(
        ppo.method(),
        collector=Groups(prompts=64, samples=1),
        annotators=(Reference(),),
        critic=Critic(optimizer=ADAM),
        credit=(RewardAtEnd(), ReferencePenalty(coefficient=BETA), GeneralizedAdvantage(lam=0.95)),
    )
    return twice(made)


def online_dpo() -> OnPolicy:
    """DPO on pairs that the policy just sampled, ranked by the reward."""
    pairs = Groups(prompts=32, samples=2)
    return twice(OnPolicy(collector=pairs, annotators=(Reference(),), objective=Preference(loss=Sigmoid(beta=0.1))))


@dataclass(frozen=True, kw_only=True)
class Shifted:
    """``method`` on strings, with a number for each prompt of deviation ``shift`` in their reward."""

    method: Callable[[], Any]
    shift: float = 5.0

    def __call__(self, seed: int, smoke: bool) -> Metrics:
        arm = Strings(
            method=self.method,
            budget=Budget(updates=UPDATES),
            problem=Bigrams(letters=LETTERS, train_size=LETTERS, shift=self.shift),
            demonstrated=Bigrams(letters=LETTERS),
            looks=10,
        )
        found = arm(seed, smoke)
        rewards, divergences = found["curve/reward"], found["curve/divergence"]
        assert isinstance(rewards, list) and isinstance(divergences, list)
        return {"frontier": frontier(list(zip(rewards, divergences, strict=True)), NATS), **found}


claim = Claim(
    slug="p3o",
    paper="2310.00212",
    text="With a constant of the prompt added to the reward P3O earns more than PPO at the same divergence, and what it earns is "
    "the same as without the constant.",
    arms={
        "p3o, shifted": Shifted(method=joint),
        "ppo, shifted": Shifted(method=proximal),
        "p3o": Shifted(method=joint, shift=0.0),
        "ppo": Shifted(method=proximal, shift=0.0),
        "separate clips, shifted": Shifted(method=separate),
        "online dpo, shifted": Shifted(method=online_dpo),
    },
    gates=(
        paired_difference("frontier", "p3o, shifted", "ppo, shifted", above=0.0),
        paired_difference("frontier", "p3o, shifted", "p3o", above=-0.1),
        paired_difference("frontier", "p3o, shifted", "p3o", below=0.1),
        paired_difference("frontier", "ppo, shifted", "ppo", below=0.0, required=False),
        paired_difference("frontier", "p3o", "ppo", above=0.0, required=False),
        paired_difference("frontier", "separate clips, shifted", "ppo, shifted", above=0.0, required=False),
        paired_difference("frontier", "p3o, shifted", "online dpo, shifted", above=0.0, required=False),
    ),
    seeds=range(5),
    budget=f"{UPDATES} steps of 64 responses an arm and seed, two passes in two minibatches",
    tuning="one setting for all arms (rate 1e-3, β = 0.05, for DPO 0.1), fixed beforehand and run once on seed 100",
    axis="share of the budget",
)
