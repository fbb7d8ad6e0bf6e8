"""DPO: direct preference optimization, a classification loss in the place of a reward model (arXiv 2305.18290).

The policy that maximises reward minus β KL(π ‖ reference) determines the reward up to a constant of the prompt, so the
Bradley-Terry likelihood of preferences is a function of the policy alone:

    s = Σ_t (log π - log reference),   h = s(chosen) - s(rejected),   loss = mean of -log σ(β h)

    cdpo             labels smoothed: a share 0.1 of them is taken for wrong
    hinge            max(0, 1 - β h)
    ipo              (h - 1/(2β))², sums over tokens as in the authors' repository
    ipo_average      the same with s divided by the response's length, as in TRL
    plackett_luce    the likelihood of a ranking of K responses; for K = 2 it is ``method``
    reference_free   the reference is left out of s

Preferences come from the problem's rankings. The reference is the policy as it was in the beginning (train it with ``sft``
first); its log-probabilities are computed once for each prompt and kept. Lists longer than two are all their ordered pairs.
"""

from dataclasses import replace

from policyopt.learners.annotators import KeptReference
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.update import Adam, Schedule
from policyopt.objectives.preference import (
    AverageLogRatio,
    Hinge,
    Likelihood,
    ListLoss,
    PlackettLuce,
    Preference,
    Sigmoid,
    Square,
)
from policyopt.rollouts.preferences import Rankings

FAMILY = "preferences"
VARIANTS = ("cdpo", "hinge", "ipo", "ipo_average", "plackett_luce", "reference_free")


def method() -> OnPolicy:
    return OnPolicy(
        collector=Rankings(prompts=64),
        annotators=(KeptReference(),),
        objective=Preference(loss=Sigmoid(beta=0.1)),
        optimizer=Adam(schedule=Schedule(warmup=150), gradient_clip=10.0),
    )


def _with(loss: ListLoss) -> OnPolicy:
    return replace(method(), objective=Preference(loss=loss))


def cdpo() -> OnPolicy:
    return _with(Sigmoid(beta=0.1, smoothing=0.1))


def hinge() -> OnPolicy:
    return _with(Hinge(beta=0.1))


def ipo() -> OnPolicy:
    return _with(Square(beta=0.1))


def ipo_average() -> OnPolicy:
    return replace(method(), objective=Preference(score=AverageLogRatio(), loss=Square(beta=0.1)))


def plackett_luce() -> OnPolicy:
    return _with(PlackettLuce(beta=0.1))


def reference_free() -> OnPolicy:
    return replace(method(), annotators=(), objective=Preference(score=Likelihood(), loss=Sigmoid(beta=0.1)))
