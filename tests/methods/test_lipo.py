"""LiPO (arXiv 2402.01878): every loss on one list by hand, reductions for pairs, constants that cancel, gradients."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch

from policyopt import registry
from policyopt.methods import lipo
from policyopt.methods.lipo import (
    Lambda,
    PointSigmoid,
    PointSquare,
    Softmax,
    discount_difference,
    gain_difference,
    point_sigmoid_loss,
    softmax_loss,
)
from policyopt.objectives.preference import Hinge, PlackettLuce, Preference, Sigmoid, ordered_pairs

SCORES, LABELS = (
    torch.tensor([[2.0, 1.0, 3.0]], dtype=torch.float64),
    torch.tensor([[1.0, 0.0, 0.5]], dtype=torch.float64),
)


def summed(loss, scores=SCORES, labels=LABELS) -> float:
    return float(loss(scores, labels).sum())


def test_swaps_are_weighted_by_the_gain_that_they_cost() -> None:
    delta = gain_difference(LABELS) * discount_difference(SCORES)
    got = torch.stack([delta[0, 0, 1], delta[0, 0, 2], delta[0, 2, 1]])
    torch.testing.assert_close(
        got, torch.tensor([0.13092975, 0.21619634, 0.20710678], dtype=torch.float64), atol=1e-7, rtol=0
    )


def test_lambda_loss_by_hand(lists) -> None:
    weighted = summed(Lambda(beta=1.0)) / 3  # without the factor K
    assert weighted == pytest.approx(0.35122530, abs=1e-7)
    assert weighted / log(2.0) == pytest.approx(0.50671100, abs=1e-6)  # with discounts in natural logarithms
    outputs, batch = lists(SCORES, torch.zeros(1, 3), LABELS)
    objective = Preference(loss=Lambda(beta=1.0))  # the mean over the three pairs, times K
    assert float(objective(outputs, objective.prepare(batch)).value) == pytest.approx(0.35122530, abs=1e-7)


def test_the_other_losses_by_hand() -> None:
    assert summed(Sigmoid(beta=1.0)) == pytest.approx(1.75345139, abs=1e-7)
    assert summed(Hinge(beta=1.0)) == pytest.approx(2.0)
    order = LABELS.argsort(descending=True)
    assert summed(PlackettLuce(beta=1.0), SCORES.gather(1, order)) == pytest.approx(1.53453398, abs=1e-7)
    assert summed(Softmax(beta=1.0)) == pytest.approx(1.07427263, abs=1e-7)
    assert float(softmax_loss(SCORES, LABELS)) == pytest.approx(1.07427263, abs=1e-7)
    assert summed(PointSquare(beta=1.0)) == pytest.approx(8.25)
    assert summed(PointSigmoid(beta=1.0)) == pytest.approx(2.98877703, abs=1e-7)
    assert float(point_sigmoid_loss(SCORES, LABELS)) == pytest.approx(2.98877703, abs=1e-7)


def test_a_pair_is_dpo_with_a_weight() -> None:
    scores, labels = torch.tensor([[0.3, -0.4]], dtype=torch.float64), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    dpo = summed(Sigmoid(beta=1.0), scores, labels)
    assert summed(Lambda(beta=1.0), scores, labels) == pytest.approx(2 * 0.36907025 * dpo, abs=1e-7)
    assert summed(PlackettLuce(beta=1.0), scores, labels) == pytest.approx(dpo)
    assert summed(Lambda(beta=1.0, gain=False, discount=False), scores, labels) == pytest.approx(2 * dpo)


def test_equal_labels_teach_nothing() -> None:
    scores = SCORES.clone().requires_grad_()
    for loss in (Lambda(beta=1.0), Sigmoid(beta=1.0)):
        value = loss(scores, torch.full_like(LABELS, 0.4)).sum()
        assert float(value) == 0.0 and not torch.autograd.grad(value, scores)[0].any()


def test_the_weights_carry_no_gradient() -> None:
    scores = SCORES.clone().requires_grad_()
    got = torch.autograd.grad(Lambda(beta=1.0)(scores, LABELS).sum(), scores)[0]
    delta = 3 * gain_difference(LABELS) * discount_difference(SCORES)
    pairs = -delta * torch.nn.functional.logsigmoid(scores[:, :, None] - scores[:, None, :])
    fixed = torch.where(ordered_pairs(LABELS), pairs, 0.0).sum()
    torch.testing.assert_close(got, torch.autograd.grad(fixed, scores)[0])


@pytest.mark.parametrize(
    "loss", [Lambda(beta=1.0), Sigmoid(beta=1.0), Hinge(beta=1.0), PlackettLuce(beta=1.0), Softmax(beta=1.0)]
)
def test_a_constant_cancels_in_all_but_the_pointwise_losses(loss) -> None:
    assert summed(loss, SCORES + 4.0) == pytest.approx(summed(loss))
    assert summed(PointSquare(beta=1.0), SCORES + 4.0) != pytest.approx(8.25)


def test_all_variants_train() -> None:
    problem = registry.problem("bigrams:responses=4,train_size=64,test_size=8,letters=6,length=5")
    for name in ("", *(f":{variant}" for variant in lipo.VARIANTS)):
        own = registry.policy("fresh:layers=1,width=16,heads=2", problem, seed=0, device="cpu")
        method = registry.method(f"lipo{name}")
        method = replace(method, collector=replace(method.collector, prompts=4))
        assert torch.isfinite(torch.as_tensor(method.learner(problem, own, seed=0).step()["loss/policy"]))
