"""MPO's claim: DPO on the easy pairs, then PPO on the prompts of the difficult ones, beats DPO on all and PPO from the start.

Strings with a known reward, 1500 pairs with one label in five flipped. All arms take the same number of gradient steps of the
policy; those with a reward model fit it for as many steps each.
"""

from __future__ import annotations

from dataclasses import replace

from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.reward_model import BradleyTerry, Rewarded
from policyopt.learners.stages import Stage, Stages
from policyopt.learners.update import Adam
from policyopt.methods import dpo, mpo
from policyopt.methods.mpo import RewardedSelected, Selected
from policyopt.objectives.preference import Preference, Sigmoid
from policyopt.problems.language.bigrams import Bigrams
from policyopt.rollouts.language import Groups
from policyopt.rollouts.preferences import Rankings
from policyopt.studies.claim import Claim, paired_difference
from policyopt.studies.preferences import Strings
from policyopt.types import Budget

FITTING, FIRST, SECOND = 60, 50, 50
STRINGS = Bigrams(train_size=1500, flips=0.2)
PAIRS = Rankings(prompts=64, held_out_prompts=0)


def preference() -> OnPolicy:
    return replace(
        dpo.method(),
        collector=PAIRS,
        objective=Preference(loss=Sigmoid(beta=0.1)),
        optimizer=Adam(learning_rate=1e-3),
    )


def reinforcement() -> OnPolicy:
    """One pass in two minibatches over 128 samples a step, critic and policy at the same rate."""
    method = mpo.reinforcement(beta=0.05)
    adam = Adam(learning_rate=1e-3)
    critic = method.critic and replace(method.critic, optimizer=adam)
    return replace(
        method, collector=Groups(prompts=128, samples=1), optimizer=adam, critic=critic, epochs=1, minibatches=2
    )


def stages(*last: Stage) -> Stages:
    fit = BradleyTerry(collector=PAIRS, optimizer=Adam(learning_rate=2e-3))
    return Stages(stages=(Stage(name="reward", method=fit, until=Budget(updates=FITTING)), *last))


def mixed() -> Stages:
    easy = Selected(name="easy", method=preference(), until=Budget(updates=FIRST))
    return stages(easy, RewardedSelected(name="difficult", method=reinforcement(), easy=False))


def unselected() -> Stages:
    every = Stage(name="dpo", method=preference(), until=Budget(updates=FIRST))
    return stages(every, Rewarded(name="ppo", method=reinforcement()))


def swapped() -> Stages:
    difficult = Selected(name="difficult", method=preference(), until=Budget(updates=FIRST), easy=False)
    return stages(difficult, RewardedSelected(name="easy", method=reinforcement()))


def from_the_start() -> Stages:
    return stages(Rewarded(name="ppo", method=reinforcement()))


WHOLE = Budget(updates=FITTING + FIRST + SECOND)

claim = Claim(
    slug="mpo",
    paper="2403.19443",
    text="DPO on easy pairs and then PPO on the prompts of difficult ones earns a higher true reward than DPO on all pairs and "
    "than PPO from the imitating policy.",
    arms={
        "mpo": Strings(method=mixed, budget=WHOLE, problem=STRINGS),
        "dpo": Strings(method=preference, budget=Budget(updates=FIRST + SECOND), problem=STRINGS),
        "ppo": Strings(method=from_the_start, budget=WHOLE, problem=STRINGS),
        "no selection": Strings(method=unselected, budget=WHOLE, problem=STRINGS),
        "swapped": Strings(method=swapped, budget=WHOLE, problem=STRINGS),
    },
    gates=(
        paired_difference("reward", "mpo", "dpo", above=0.0),
        paired_difference("reward", "mpo", "ppo", above=0.0),
        paired_difference("reward", "mpo", "no selection", above=0.0, required=False),
        paired_difference("reward", "mpo", "swapped", above=0.0, required=False),
    ),
    seeds=range(5),
    budget=f"{FIRST + SECOND} updates of the policy an arm and seed (64 pairs, or 128 samples in two minibatches); {FITTING} "
    "of the reward model",
    tuning="one setting for all arms (rates 1e-3 and 2e-3, β = 0.1 and 0.05), fixed beforehand: one try an arm",
    axis="share of the budget",
)
