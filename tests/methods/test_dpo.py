"""DPO (arXiv 2305.18290): numbers by hand, invariances, the tabular optimum, and that training learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from policyopt import registry
from policyopt.learners.annotators import Reference
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.update import Adam
from policyopt.methods import dpo
from policyopt.models.log_linear import LogLinearPolicy
from policyopt.objectives.preference import Preference, Sigmoid, plackett_luce_loss
from policyopt.problems.decision.bandit import logged, tabular
from policyopt.problems.language.bigrams import Bigrams
from policyopt.rollouts.bandit import LoggedPairs
from policyopt.training.loop import Cadence, run
from policyopt.types import Budget, Outputs, generator

PAIR = ([[-10.0, -12.0]], [[-11.0, -11.5]], [[1.0, 0.0]])  # h = 1.5


def value_and_gradient(method: OnPolicy, outputs, batch):
    prepared = method.objective.prepare(batch)
    value = method.objective(outputs, prepared).value
    return float(value), torch.autograd.grad(value, outputs.logp)[0].sum(1)


def test_loss_and_gradient_by_hand(lists) -> None:
    value, gradient = value_and_gradient(dpo.method(), *lists(*PAIR))
    assert value == pytest.approx(0.62095705, abs=1e-8)
    torch.testing.assert_close(
        gradient, torch.tensor([-0.04625702, 0.04625702], dtype=torch.float64), atol=1e-7, rtol=0
    )


def test_variants_by_hand(lists) -> None:
    assert value_and_gradient(dpo.hinge(), *lists(*PAIR))[0] == pytest.approx(0.85)
    assert value_and_gradient(dpo.cdpo(), *lists(*PAIR))[0] == pytest.approx(0.63595705, abs=1e-8)
    assert value_and_gradient(dpo.ipo(), *lists(*PAIR))[0] == pytest.approx(12.25)
    outputs, batch = lists(*PAIR, length=5)
    batch = batch.replace(mask=torch.arange(5) < torch.tensor([[4], [5]]))  # lengths 4 and 5
    scale = torch.tensor([[5 / 4], [1.0]], dtype=torch.float64)  # so that the sums stay what they were
    outputs = Outputs(logp=(outputs.logp * scale).detach().requires_grad_())
    assert value_and_gradient(dpo.ipo_average(), outputs, batch.replace(ref_logp=batch.ref_logp * scale))[
        0
    ] == pytest.approx(21.6225)
    assert value_and_gradient(dpo.plackett_luce(), *lists(*PAIR))[0] == pytest.approx(0.62095705, abs=1e-8)
    assert value_and_gradient(dpo.reference_free(), *lists(*PAIR))[0] == pytest.approx(0.59813887, abs=1e-8)  # h = 2


def test_at_the_reference_the_loss_is_log_two(lists) -> None:
    for beta in (0.01, 0.5, 3.0):
        outputs, batch = lists(PAIR[1], PAIR[1], PAIR[2])
        objective = Preference(loss=Sigmoid(beta=beta))
        assert float(objective(outputs, objective.prepare(batch)).value) == pytest.approx(0.69314718, abs=1e-8)


def test_what_both_responses_share_cancels(lists) -> None:
    shifted = (torch.tensor(PAIR[0]) + 7.5, *PAIR[1:])
    assert value_and_gradient(dpo.method(), *lists(*shifted))[0] == pytest.approx(0.62095705, abs=1e-7)


def test_swapping_the_labels_costs_the_margin(lists) -> None:
    swapped = value_and_gradient(dpo.method(), *lists(PAIR[0], PAIR[1], [[0.0, 1.0]]))[0]
    assert swapped == pytest.approx(0.77095705, abs=1e-8) and swapped - 0.62095705 == pytest.approx(0.15, abs=1e-7)


def test_rankings_by_hand() -> None:
    assert float(plackett_luce_loss(torch.tensor([[0.5, 0.2, -0.3]]))) == pytest.approx(1.25804573, abs=1e-6)


def test_the_optimum_by_hand_and_its_implicit_reward() -> None:
    reward, reference = (
        torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64),
        torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64),
    )
    bandit = tabular(reward, reference.log())
    optimum = bandit.optimum(0.5)
    want = torch.tensor([[0.91867231, 0.07459727, 0.00673043]], dtype=torch.float64)
    torch.testing.assert_close(optimum, want, atol=1e-7, rtol=0)
    implicit = 0.5 * (optimum / reference).log()
    assert float(reward[0, 0] - implicit[0, 0]) == pytest.approx(0.69583931, abs=1e-7)  # β log Z
    torch.testing.assert_close(implicit - implicit[:, :1], reward - reward[:, :1])


def test_many_comparisons_recover_the_optimum() -> None:
    rng = generator(0, "dpo-optimum")
    reward = torch.randn(1, 20, generator=rng).double()
    bandit = tabular(reward)
    pairs = logged(bandit, bandit.reference_probability, 50_000, rng, distinct=True)
    bandit = tabular(reward, pairs=pairs)
    method = replace(
        dpo.method(),
        collector=LoggedPairs(),
        annotators=(Reference(),),
        objective=Preference(loss=Sigmoid(beta=0.5)),
        optimizer=Adam(learning_rate=0.1),
    )
    policy = LogLinearPolicy(bandit)
    run(method, bandit, policy, budget=Budget(updates=150), seed=0, cadence=Cadence(evaluations=1))
    assert float((policy().detach() - bandit.optimum(0.5)).abs().sum() / 2) < 0.05  # total variation


def test_training_raises_the_true_reward_and_the_held_out_accuracy() -> None:
    problem = Bigrams(train_size=512, evaluation_size=64)
    policy = registry.policy("fresh:layers=1,width=32", problem, seed=0, device="cpu")
    run(registry.method("sft"), problem, policy, budget=Budget(updates=30), seed=0, cadence=Cadence(evaluations=1))
    method = replace(dpo.method(), optimizer=Adam(learning_rate=3e-3))
    result = run(method, problem, policy, budget=Budget(updates=25), seed=0, cadence=Cadence(evaluations=1))
    returns, accuracy = result.curve("eval/return")[1], result.curve("eval/preference_accuracy")[1]
    assert returns[-1] > returns[0] + 0.5 and accuracy[0] == 0.5 and accuracy[-1] > 0.55
