"""RPO: DPO with the likelihood of the chosen responses, an adversarial regularizer in disguise (arXiv 2405.16436).

Playing against the reward that fits the preferences worst for the policy is, by minimax exchange, DPO plus imitation of a
baseline policy; here the baseline is the distribution of the chosen responses:

    method     loss = mean of -log σ(β h) - η β Σ_t log π(chosen_t)        η = 0.005, β = 0.01 (the paper's experiments)
    average    loss = mean of -log σ(β h) - η (1/T) Σ_t log π(chosen_t)    η = 0.2, β = 0.5 (its appendix; no factor β)

Sums and means differ by the response's length: a weight belongs to one form.
"""

from dataclasses import replace

from policyopt.learners.on_policy import OnPolicy
from policyopt.methods import dpo
from policyopt.objectives.preference import ChosenLikelihood, Preference, Sigmoid

FAMILY = "preferences"
VARIANTS = ("average",)


def cumulative(eta: float, beta: float) -> Preference:
    """The published objective, whose imitation weight is η β."""
    return Preference(loss=Sigmoid(beta=beta), regularizers=(ChosenLikelihood(coefficient=eta * beta),))


def method() -> OnPolicy:
    return replace(dpo.method(), objective=cumulative(eta=0.005, beta=0.01))


def average() -> OnPolicy:
    imitation = ChosenLikelihood(coefficient=0.2, average=True)
    return replace(dpo.method(), objective=Preference(loss=Sigmoid(beta=0.5), regularizers=(imitation,)))
