"""DPO's claim: more true reward at the same divergence from the reference than imitating the chosen responses, and about as
much as reinforcement learning on a reward model fitted to the same labels.

Strings with a known reward, 2000 Bradley-Terry labels. Reward within 2 and within 5 nats of the reference is the best among ten
looks on the way of a run. Each policy takes the same number of gradient steps; fitting the reward model is free.
"""

from __future__ import annotations

from dataclasses import replace

from policyopt.credit.outcomes import Constant
from policyopt.learners.annotators import Reference
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.reward_model import BradleyTerry, Rewarded
from policyopt.learners.stages import Stage, Stages
from policyopt.learners.update import Adam
from policyopt.methods import dpo, rloo, sft
from policyopt.methods.rso import Best
from policyopt.objectives.divergence import ReferenceK2
from policyopt.objectives.policy_gradient import PolicyGradient
from policyopt.objectives.preference import Preference, Sigmoid
from policyopt.problems.language.bigrams import Bigrams
from policyopt.rollouts.language import Groups
from policyopt.rollouts.preferences import Rankings
from policyopt.studies.claim import Claim, paired_difference
from policyopt.studies.preferences import Strings
from policyopt.types import Budget

UPDATES, FITTING = 100, 80
STRINGS = Bigrams(train_size=2000)
RANGE = 8.0  # of the true reward, from random strings to the best ones


def direct() -> OnPolicy:
    return replace(
        dpo.method(),
        collector=Rankings(prompts=64, held_out_prompts=0),
        objective=Preference(loss=Sigmoid(beta=0.3)),
        optimizer=Adam(learning_rate=1e-3),
    )


def preferred() -> OnPolicy:
    """Imitation of the chosen responses."""
    return replace(
        sft.method(),
        collector=Rankings(prompts=64, held_out_prompts=0),
        credit=(Best(), Constant()),
        optimizer=Adam(learning_rate=1e-3),
    )


def reinforced() -> Stages:
    """A reward model, then REINFORCE with a leave-one-out baseline and a penalty of the divergence."""
    base = rloo.method()
    assert isinstance(base.objective, PolicyGradient)
    method = replace(
        base,
        collector=Groups(prompts=16, samples=8),
        annotators=(Reference(),),
        objective=replace(base.objective, regularizers=(ReferenceK2(coefficient=0.05),)),
        optimizer=Adam(learning_rate=1e-3),
    )
    fit = BradleyTerry(collector=Rankings(prompts=64, held_out_prompts=0), optimizer=Adam(learning_rate=2e-3))
    return Stages(
        stages=(
            Stage(name="reward", method=fit, until=Budget(updates=FITTING)),
            Rewarded(name="reinforcement", method=method),
        )
    )


claim = Claim(
    slug="dpo",
    paper="2305.18290",
    text="At the same divergence from the reference DPO earns more true reward than imitating the chosen responses, and at most "
    "5% of its range less than reinforcement learning on a reward model fitted to the same labels.",
    arms={
        "dpo": Strings(method=direct, budget=Budget(updates=UPDATES), problem=STRINGS, looks=10),
        "preferred": Strings(method=preferred, budget=Budget(updates=UPDATES), problem=STRINGS, looks=10),
        "reward model": Strings(method=reinforced, budget=Budget(updates=FITTING + UPDATES), problem=STRINGS, looks=18),
    },
    gates=(
        paired_difference("within 2 nats", "dpo", "preferred", above=0.0),
        paired_difference("within 5 nats", "dpo", "preferred", above=0.0),
        paired_difference("within 2 nats", "dpo", "reward model", above=-0.05 * RANGE),
        paired_difference("within 5 nats", "dpo", "reward model", above=-0.05 * RANGE),
        paired_difference("reward", "dpo", "reward model", above=0.0, required=False),
    ),
    seeds=range(5),
    budget=f"{UPDATES} updates of the policy an arm and seed, of 64 pairs, or of 128 samples; {FITTING} of the reward model",
    tuning="one setting an arm (rates 1e-3 and 2e-3, β = 0.3, coefficient 0.05), looked at once on seed 100: one try an arm",
    axis="share of the budget",
)
