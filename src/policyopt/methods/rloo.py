"""RLOO: REINFORCE with the mean reward of the other samples as baseline (arXiv 2402.14740).

advantage = reward - mean reward of the other G - 1 responses to the prompt; loss = -mean over responses of
advantage · log π(response).
"""

from dataclasses import replace

from policyopt.credit.groups import LeaveOneOut
from policyopt.learners.on_policy import OnPolicy
from policyopt.methods import reinforce
from policyopt.rollouts.language import Groups

FAMILY = "baselines"


def method() -> OnPolicy:
    return replace(reinforce.method(), collector=Groups(prompts=32, samples=8), credit=(LeaveOneOut(),))
