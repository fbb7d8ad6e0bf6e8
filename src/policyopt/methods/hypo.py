"""HyPO: DPO on logged pairs, and the reverse KL divergence to the reference on the policy's own samples (arXiv 2406.01462).

DPO's loss is blind to responses that the data don't cover. One more term sees them, without any reward:

    loss = DPO(logged pairs) + λ mean over online samples of log π(y) · sg(c),   c = log π(y) - log reference(y) - baseline

whose gradient is that of λ KL(π ‖ reference); its value is not the divergence, which is logged as ``policy/reference_kl``.
The baseline is the mean of the prompt's other samples (RLOO, k = 2). Sums over tokens; samples are used once, at temperature
1. ``alone`` has one sample a prompt and no baseline. β and λ are recalled, not read: 0.05 and 1e-4 for long responses; small
action spaces want λ of 0.02 to 0.2.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from policyopt.credit.groups import leave_one_out
from policyopt.learners.annotators import Reference
from policyopt.learners.on_policy import OnPolicy
from policyopt.methods import dpo
from policyopt.objectives.policy_gradient import Objective
from policyopt.objectives.preference import Preference, Sigmoid
from policyopt.parallel import all_sum
from policyopt.rollouts.language import Groups
from policyopt.rollouts.preferences import Rankings
from policyopt.rollouts.together import Together
from policyopt.types import Collector, Loss, Outputs, Rollouts

FAMILY = "preferences"
VARIANTS = ("alone",)


def divergence_weights(log_ratio: Tensor, group: Tensor, baseline: bool) -> Tensor:
    """log_ratio [N] of samples → the weights [N] of ∇ log π, minus the mean of the group's others with ``baseline``."""
    return leave_one_out(log_ratio, group) if baseline else log_ratio


@dataclass(frozen=True, kw_only=True)
class ReverseDivergence(Objective):
    """λ · mean of log π · sg(weight): the score-function gradient of KL(π ‖ reference)."""

    whole_groups: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("ref_logp", "group")
    coefficient: float = 1e-4
    baseline: bool = True

    def prepare(self, batch: Rollouts) -> Rollouts:
        count = all_sum(torch.tensor(float(len(batch))))
        return batch.replace(share=torch.full((len(batch), 2), 1.0 / float(count), device=batch.mask.device))

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Loss:
        assert outputs.logp is not None
        logp, share = (outputs.logp * batch.mask).sum(1), batch.share[:, 0]
        ratio = logp.detach() - (batch.ref_logp * batch.mask).sum(1)
        value = self.coefficient * (share * divergence_weights(ratio, batch.group, self.baseline) * logp).sum()
        return Loss(value, {"loss/divergence": value.detach(), "policy/reference_kl": (share * ratio).sum()})


def hybrid(logged: Collector, online: Collector, beta: float, coefficient: float, baseline: bool = True) -> OnPolicy:
    """DPO with ``beta`` on what is logged, the divergence with ``coefficient`` on what is sampled."""
    return replace(
        dpo.method(),
        collector=Together(main=logged, others={"online": online}),
        annotators=(Reference(),),
        objective=Preference(loss=Sigmoid(beta=beta)),
        objectives={"online": ReverseDivergence(coefficient=coefficient, baseline=baseline)},
    )


def method() -> OnPolicy:
    return hybrid(Rankings(prompts=64), Groups(prompts=32, samples=2), beta=0.05, coefficient=1e-4)


def alone() -> OnPolicy:
    return hybrid(Rankings(prompts=64), Groups(prompts=64, samples=1), beta=0.05, coefficient=1e-4, baseline=False)
