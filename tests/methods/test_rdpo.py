"""rDPO (arXiv 2403.00409): numbers by hand, unbiasedness under flips, the linear form, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from policyopt.methods.rdpo import Robust, method
from policyopt.objectives.preference import robust_loss, sigmoid_loss

MARGIN = torch.tensor(0.15, dtype=torch.float64)  # β h = 0.1 · 1.5


@pytest.mark.parametrize(("flip", "want"), [(0.1, 0.60220705), (0.2, 0.57095705), (0.0, 0.62095705)])
def test_by_hand(flip: float, want: float) -> None:
    assert float(robust_loss(MARGIN, flip)) == pytest.approx(want, abs=1e-8)


def test_the_expectation_over_flips_is_the_clean_loss() -> None:
    noisy = 0.8 * robust_loss(MARGIN, 0.2) + 0.2 * robust_loss(-MARGIN, 0.2)
    assert float(noisy) == pytest.approx(0.62095705, abs=1e-8)
    smoothed = 0.8 * sigmoid_loss(MARGIN, 0.2) + 0.2 * sigmoid_loss(-MARGIN, 0.2)
    assert abs(float(smoothed) - 0.62095705) > 0.01  # label smoothing is biased


def test_the_gradient_has_a_constant_floor() -> None:
    margin = MARGIN.clone().requires_grad_()
    slope = float(torch.autograd.grad(robust_loss(margin, 0.2), margin)[0])
    assert slope == pytest.approx(-0.79590349, abs=1e-8)
    assert slope == pytest.approx(-float((-MARGIN).sigmoid()) - 0.2 / 0.6, abs=1e-8)


def test_it_is_linear_far_out_and_may_be_negative() -> None:
    values = robust_loss(torch.tensor([20.0, -20.0], dtype=torch.float64), 0.2)
    torch.testing.assert_close(values, torch.tensor([-6.6667, 26.6667], dtype=torch.float64), atol=1e-4, rtol=0)


def test_it_is_dpo_with_a_linear_bonus() -> None:
    margins = torch.linspace(-5, 5, 11, dtype=torch.float64)
    want = sigmoid_loss(margins) - 0.3 / 0.4 * margins
    torch.testing.assert_close(robust_loss(margins, 0.3), want)


def test_the_method_uses_it(lists) -> None:
    outputs, batch = lists([[-10.0, -12.0]], [[-11.0, -11.5]], [[1.0, 0.0]])
    objective = method().objective
    assert float(objective(outputs, objective.prepare(batch)).value) == pytest.approx(0.60220705, abs=1e-8)


def test_half_of_the_labels_flipped_is_hopeless() -> None:
    with pytest.raises(ValueError, match=r"from 0 to below 0\.5, got 0\.5"):
        Robust(flip=0.5)
