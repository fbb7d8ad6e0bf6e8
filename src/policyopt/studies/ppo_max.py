"""PPO-max's claim: under a learned, imperfect reward plain PPO over-optimizes; PPO-max stays stable and ends higher in truth.

Strings with a known reward; the reward model is fitted to few pairs with one label in five flipped, so that it is wrong about
much of what a policy can be driven to. All arms are paid by a model fitted in the same way and take the same number of steps
of the same number of responses; those with a critic of the reward model train it before, under the initial policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from policyopt.credit.scaling import RunningReward
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.reward_model import with_language_loss
from policyopt.learners.stages import Stage, Stages
from policyopt.learners.update import Adam
from policyopt.methods import ppo_max
from policyopt.problems.language.bigrams import Bigrams
from policyopt.rollouts.language import Groups
from policyopt.rollouts.preferences import Rankings
from policyopt.rollouts.together import Together
from policyopt.rollouts.written import Demonstrations
from policyopt.studies.claim import Claim, Metrics, paired_difference, paired_log_ratio
from policyopt.studies.preferences import Strings
from policyopt.types import Budget

REWARD, CRITIC, UPDATES = 40, 10, 60
LOOK = 10  # updates between looks
STRINGS = Bigrams(train_size=300, flips=0.2)
ADAM = Adam(learning_rate=1e-3)
GROUPS = Groups(prompts=64, samples=1)


def sized(made: OnPolicy) -> OnPolicy:
    """64 responses a step, one pass in two minibatches, critic and policy at the same rate."""
    assert made.critic is not None
    text = {name: Demonstrations(prompts=16) for name in made.objectives}
    return replace(
        made,
        collector=Together(main=GROUPS, others=text) if text else GROUPS,
        critic=replace(made.critic, optimizer=ADAM),
        optimizer=ADAM,
        minibatches=2,
    )


def fitted(stages: Stages) -> Stages:
    """The same stages with this study's sizes and reward model."""
    reward, *rest = stages.stages
    fit = replace(
        with_language_loss(), collector=Rankings(prompts=64, held_out_prompts=0), optimizer=Adam(learning_rate=2e-3)
    )
    *before, last = rest
    small = [replace(stage, method=_alone(stage), until=Budget(updates=CRITIC)) for stage in before]
    ppo = replace(last, method=sized(last.method))
    return Stages(stages=(replace(reward, method=fit, until=Budget(updates=REWARD)), *small, ppo))


def _alone(stage: Stage) -> OnPolicy:
    made: OnPolicy = stage.method
    assert made.critic is not None
    return replace(made, collector=GROUPS, critic=replace(made.critic, optimizer=ADAM), minibatches=2)


def whole() -> Stages:
    return fitted(ppo_max.method())


def vanilla() -> Stages:
    return fitted(ppo_max.vanilla())


def without_penalty() -> Stages:
    credit = ppo_max.credit((RunningReward(clip=0.8),), eta=0.0)
    return fitted(ppo_max.staged(replace(ppo_max.training(), credit=credit)))


def without_imitation() -> Stages:
    return fitted(ppo_max.staged(replace(ppo_max.training(), objectives={})))


@dataclass(frozen=True, kw_only=True)
class Optimized:
    """A run of the stages; what counts is what the last one does. ``before``: updates of the stages before it."""

    method: Callable[[], Stages]
    before: int = REWARD + CRITIC

    def __call__(self, seed: int, smoke: bool) -> Metrics:
        updates = self.before + UPDATES
        arm = Strings(method=self.method, budget=Budget(updates=updates), problem=STRINGS, looks=updates // LOOK)
        found = arm(seed, smoke)
        kept = 1 if smoke else UPDATES // LOOK
        rewards, divergences = found["curve/reward"], found["curve/divergence"]
        assert isinstance(rewards, list) and isinstance(divergences, list)
        start, after = rewards[0], rewards[-kept:]
        return {
            "reward": rewards[-1],
            "worst": min(after[-max(1, kept // 3) :]),
            "divergence": divergences[-1],
            "below the start": float(rewards[-1] < start),
            "curve/x": [float(LOOK * i) for i in range(kept + 1)],
            "curve/reward": [start, *after],
        }


claim = Claim(
    slug="ppo-max",
    paper="2307.04964",
    text="Under a reward model fitted to few, noisy pairs PPO-max ends with a higher true reward than plain PPO, and closer to "
    "the initial policy.",
    arms={
        "ppo-max": Optimized(method=whole),
        "vanilla": Optimized(method=vanilla, before=REWARD),
        "no penalty": Optimized(method=without_penalty),
        "no imitation": Optimized(method=without_imitation),
    },
    gates=(
        paired_difference("reward", "ppo-max", "vanilla", above=0.0),
        paired_log_ratio("divergence", "vanilla", "ppo-max", above=1.0),
        paired_log_ratio("divergence", "vanilla", "ppo-max", above=3.0, required=False),
        paired_difference("worst", "ppo-max", "vanilla", above=0.0, required=False),
        paired_difference("reward", "ppo-max", "no penalty", above=0.0, required=False),
        paired_difference("reward", "ppo-max", "no imitation", above=0.0, required=False),
    ),
    seeds=range(5),
    budget=f"{UPDATES} steps of 64 responses an arm and seed, after {REWARD} updates of the reward model and, in all arms but "
    f"vanilla, {CRITIC} of the critic",
    tuning="one setting for all arms (rate 1e-3, δ = 0.8, η = 0.05), fixed beforehand; the number of pairs (300) too",
    axis="steps of PPO",
)
