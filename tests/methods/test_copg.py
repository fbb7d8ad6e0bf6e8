"""CoPG (arXiv 2406.19185): optimum and weights by hand, three equal forms of the gradient, invariances, the on-policy case."""

from __future__ import annotations

import pytest
import torch

from policyopt import registry
from policyopt.methods import copg
from policyopt.methods.copg import Contrastive, contrastive_loss
from policyopt.objectives.preference import Preference
from policyopt.problems.decision.bandit import tabular
from policyopt.problems.language.bigrams import Bigrams
from policyopt.types import Outputs

REWARD = torch.tensor([2.5, 2.0, 1.0], dtype=torch.float64)
BETA = 0.5
UNIFORM = torch.full((3,), 1 / 3, dtype=torch.float64)


def pair_gradient(
    logits: torch.Tensor, a: int, b: int, beta: float = BETA, reward: torch.Tensor = REWARD
) -> torch.Tensor:
    """Of the MAXIMISED objective, by the logits."""
    logits = logits.clone().requires_grad_()
    g = logits.log_softmax(0) - UNIFORM.log()
    return torch.autograd.grad(-contrastive_loss(g[a] - g[b], reward[a] - reward[b], beta), logits)[0]


def test_the_optimum_by_hand() -> None:
    bandit = tabular(REWARD[None])
    optimum = bandit.optimum(BETA)
    torch.testing.assert_close(
        optimum[0], torch.tensor([0.70538451, 0.25949646, 0.03511903], dtype=torch.float64), atol=1e-7, rtol=0
    )
    best = BETA * (UNIFORM * (REWARD / BETA).exp()).sum().log()
    assert float(best) == pytest.approx(2.12520, abs=1e-5)
    assert float(bandit.value(optimum) - BETA * bandit.divergence(optimum)) == pytest.approx(float(best))


def test_weights_of_a_pair_by_hand() -> None:
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    regularized = REWARD - BETA * (policy / UNIFORM).log()
    torch.testing.assert_close(
        regularized, torch.tensor([2.29726745, 2.05268026, 1.25541281], dtype=torch.float64), atol=1e-7, rtol=0
    )
    gradient = pair_gradient(policy.log(), 0, 1)
    torch.testing.assert_close(
        gradient, 0.24458712 * torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64), atol=1e-7, rtol=0
    )


def test_three_forms_have_one_gradient() -> None:
    logits = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64).requires_grad_()
    g = logits.log_softmax(0) - UNIFORM.log()
    difference, gap = g[0] - g[2], REWARD[0] - REWARD[2]
    plain = torch.autograd.grad(-contrastive_loss(difference, gap, BETA), logits, retain_graph=True)[0]
    stopped = (gap - BETA * difference).detach() * difference
    squared = -((gap - BETA * difference).square()) / (2 * BETA)
    torch.testing.assert_close(plain, torch.autograd.grad(stopped, logits, retain_graph=True)[0])
    torch.testing.assert_close(plain, torch.autograd.grad(squared, logits)[0])


def test_at_the_optimum_no_single_pair_pulls() -> None:
    logits = tabular(REWARD[None]).optimum(BETA)[0].log()
    for a in range(3):
        for b in range(3):
            torch.testing.assert_close(pair_gradient(logits, a, b), torch.zeros(3).double(), atol=1e-9, rtol=0)


def test_with_labels_of_a_quarter_it_is_ipo() -> None:
    logits = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64).requires_grad_()
    difference = (logits.log_softmax(0) - UNIFORM.log())[:2].diff()[0] * -1
    ipo = -((0.5 - BETA * difference).square()) / (2 * BETA)
    want = torch.autograd.grad(ipo, logits)[0]
    labels = torch.tensor([0.25, -0.25, 0.0], dtype=torch.float64)
    torch.testing.assert_close(pair_gradient(logits.detach(), 0, 1, reward=labels), want)


def test_on_policy_it_is_twice_the_policy_gradient() -> None:
    logits = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    policy, total = logits.softmax(0), torch.zeros(3).double()
    for a in range(3):
        for b in range(3):
            total += policy[a] * policy[b] * pair_gradient(logits, a, b)
    variable = logits.clone().requires_grad_()
    probability = variable.softmax(0)
    objective = (probability * (REWARD - BETA * (probability / UNIFORM).log())).sum()
    torch.testing.assert_close(total, 2 * torch.autograd.grad(objective, variable)[0])


def test_shifts_and_swaps_change_nothing(lists) -> None:
    objective = Preference(loss=Contrastive(beta=BETA))

    def value(labels, order=(0, 1)):
        outputs, batch = lists([[-1.0, -2.0]], [[-1.5, -1.2]], [labels])
        rows = torch.tensor(order)
        return objective(Outputs(logp=outputs.logp[rows]), objective.prepare(batch[rows])).value.item()

    assert value([2.5, 1.0]) == pytest.approx(value([12.5, 11.0])) == pytest.approx(value([2.5, 1.0], (1, 0)))


def test_half_of_beta_in_the_loss_is_right() -> None:
    """Ascent from pairs of a uniform sampler ends at the optimum for β, not for 2β."""
    logits = torch.zeros(3).double()
    for _ in range(4000):
        logits = logits + 0.05 * sum(pair_gradient(logits, a, b) for a in range(3) for b in range(3))
    torch.testing.assert_close(logits.softmax(0), tabular(REWARD[None]).optimum(BETA)[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["copg", "copg:online"])
def test_it_trains_on_rewards(name: str) -> None:
    problem = Bigrams(train_size=64, test_size=8, letters=6, length=5)
    policy = registry.policy("fresh:layers=1,width=16,heads=2", problem, seed=0, device="cpu")
    metrics = registry.method(name).learner(problem, policy, seed=0).step()
    assert torch.isfinite(torch.as_tensor(metrics["loss/policy"])) and "reward/mean" in metrics
    assert copg.method().objective.loss == Contrastive(beta=0.06)
