"""GRPO: group-relative policy optimization (DeepSeekMath, arXiv 2402.03300).

advantage = (reward - mean) / standard deviation within the group of a prompt; PPO's clipped surrogate; no critic. The
published form averages over each response's tokens, then over responses. Its later variants differ in parts:

    token_mean    one mean over all tokens of the batch, the form of most current trainers
    dr_grpo       no division by the deviation, none by the length (arXiv 2503.20783)
    dapo          token mean, clip-higher 0.28 (arXiv 2503.14476; without its dynamic sampling)
    gspo          one importance ratio a response, clipped tightly (arXiv 2507.18071)
    cispo         the ratio clipped as a weight, so that no token loses its gradient (arXiv 2506.13585)
    kl            the published penalty towards the initial policy (k3, coefficient 0.04)
"""

from dataclasses import replace

from policyopt.credit.groups import GroupMean, GroupNormalized
from policyopt.learners.annotators import Reference
from policyopt.learners.on_policy import OnPolicy
from policyopt.objectives.divergence import ReferenceK3
from policyopt.objectives.estimators import FixedLength, SequenceRatio, WeightClip
from policyopt.objectives.policy_gradient import PolicyGradient, RatioClip, SequenceMean, TokenMean
from policyopt.rollouts.language import Groups

FAMILY = "baselines"
VARIANTS = ("token_mean", "dr_grpo", "dapo", "gspo", "cispo", "kl")


def method() -> OnPolicy:
    return OnPolicy(
        collector=Groups(prompts=32, samples=8),
        credit=(GroupNormalized(),),
        objective=PolicyGradient(stabilization=RatioClip(low=0.2, high=0.2), aggregation=SequenceMean()),
    )


def token_mean() -> OnPolicy:
    return _with(PolicyGradient(stabilization=RatioClip(low=0.2, high=0.2), aggregation=TokenMean()))


def dr_grpo() -> OnPolicy:
    objective = PolicyGradient(stabilization=RatioClip(low=0.2, high=0.2), aggregation=FixedLength(length=32))
    return replace(_with(objective), credit=(GroupMean(),))


def dapo() -> OnPolicy:
    return _with(PolicyGradient(stabilization=RatioClip(low=0.2, high=0.28), aggregation=TokenMean()))


def gspo() -> OnPolicy:
    clip = RatioClip(low=3e-4, high=4e-4)
    return _with(PolicyGradient(denominator=SequenceRatio(), stabilization=clip, aggregation=SequenceMean()))


def cispo() -> OnPolicy:
    return _with(PolicyGradient(stabilization=WeightClip(), aggregation=TokenMean()))


def kl() -> OnPolicy:
    penalized = PolicyGradient(
        stabilization=RatioClip(low=0.2, high=0.2),
        aggregation=SequenceMean(),
        regularizers=(ReferenceK3(coefficient=0.04),),
    )
    return replace(_with(penalized), annotators=(Reference(),))


def _with(objective: PolicyGradient) -> OnPolicy:
    return replace(method(), objective=objective)
