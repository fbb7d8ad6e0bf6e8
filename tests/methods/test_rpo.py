"""RPO (arXiv 2405.16436): both forms by hand, gradients, the shift that now matters, the minimax identity, unseen actions."""

from __future__ import annotations

import pytest
import torch

from policyopt.methods import dpo, rpo
from policyopt.methods.rpo import cumulative
from policyopt.objectives.preference import ChosenLikelihood, Preference, Sigmoid

PAIR = ([[-10.0, -12.0]], [[-11.0, -11.5]], [[1.0, 0.0]])


def evaluated(objective, outputs, batch):
    value = objective(outputs, objective.prepare(batch)).value
    return float(value), torch.autograd.grad(value, outputs.logp)[0].sum(1)


def test_cumulative_by_hand(lists) -> None:
    value, gradient = evaluated(cumulative(eta=0.005, beta=0.1), *lists(*PAIR))
    assert value == pytest.approx(0.62595705, abs=1e-8)
    rejected = 0.1 * float(torch.tensor(-0.15).sigmoid())
    want = torch.tensor([-rejected - 0.005 * 0.1, rejected], dtype=torch.float64)
    torch.testing.assert_close(gradient, want, atol=1e-7, rtol=0)


def test_average_by_hand(lists) -> None:
    objective = Preference(loss=Sigmoid(beta=0.1), regularizers=(ChosenLikelihood(coefficient=0.2, average=True),))
    assert evaluated(objective, *lists(*PAIR, length=4))[0] == pytest.approx(1.12095705, abs=1e-8)
    assert rpo.average().objective == Preference(
        loss=Sigmoid(beta=0.5), regularizers=(ChosenLikelihood(coefficient=0.2, average=True),)
    )


def test_without_imitation_it_is_dpo(lists) -> None:
    one = evaluated(cumulative(eta=0.0, beta=0.1), *lists(*PAIR))
    other = evaluated(dpo.method().objective, *lists(*PAIR))
    assert one[0] == other[0]
    torch.testing.assert_close(one[1], other[1])


def test_a_shift_of_both_has_the_slope_of_the_imitation(lists) -> None:
    shifted = (torch.tensor(PAIR[0]) + 1.0, *PAIR[1:])
    objective = cumulative(eta=0.005, beta=0.1)
    difference = evaluated(objective, *lists(*shifted))[0] - evaluated(objective, *lists(*PAIR))[0]
    assert difference == pytest.approx(-0.005 * 0.1, abs=1e-7)


def test_minimax_identity() -> None:
    reference, base = (
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64),
    )
    policy, eta, beta = torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64), 0.7, 0.4
    for constant in (-1.0, 0.0, 2.5):
        reward = beta * (policy / reference).log() + constant
        partition = (reference * (reward / beta).exp()).sum().log()
        left = eta * (-(base * reward).sum() + beta * partition)
        right = eta * beta * (-(base * policy.log()).sum() + (base * reference.log()).sum())
        torch.testing.assert_close(left, right)


def test_an_unseen_action_is_pushed_down() -> None:
    probability = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    logits = probability.log().clone().requires_grad_()
    logp = logits.log_softmax(0)
    difference = logp[0] - logp[1]
    alone = torch.autograd.grad(-torch.nn.functional.logsigmoid(0.1 * difference), logits, retain_graph=True)[0]
    imitation = torch.autograd.grad(-0.5 * 0.1 * logp[0], logits)[0]
    assert float(alone[2]) == 0.0 and float(imitation[2]) == pytest.approx(0.01)
