"""TGDPO (arXiv 2506.14574): the weighted margin by hand, reductions to DPO, gradients, and its two stages."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tensordict import TensorDict

from policyopt import registry
from policyopt.learners.update import Adam
from policyopt.methods import dpo, tgdpo
from policyopt.methods.tgdpo import SIMPO, TokenGuidance, guided, token_weights
from policyopt.objectives.preference import Preference, Sigmoid
from policyopt.types import Budget, Outputs, Rollouts

RATIO = torch.tensor(
    [[0.4, -0.2], [-0.3, 0.6]], dtype=torch.float64
)  # log π - log reference of the chosen, of the rejected
GUIDE = torch.tensor([[2.0, -1.0], [-3.0, 1.0]], dtype=torch.float64)


def pair(guide: torch.Tensor, ratio: torch.Tensor = RATIO) -> tuple[Outputs, Rollouts]:
    batch = Rollouts(
        actions=torch.zeros(2, 2, dtype=torch.int64),
        mask=torch.ones(2, 2, dtype=torch.bool),
        ref_logp=torch.zeros(2, 2).double(),
        guide_logp=guide,
        group=torch.zeros(2, dtype=torch.int64),
        scores=TensorDict({"reward": torch.tensor([1.0, 0.0])}, [2]),
        batch_size=[2],
    )
    return Outputs(logp=ratio.clone().requires_grad_()), batch


def evaluated(guide: torch.Tensor, alpha: float, ratio: torch.Tensor = RATIO):
    outputs, batch = pair(guide, ratio)
    objective = Preference(loss=Sigmoid(beta=0.1))
    batch = objective.prepare(TokenGuidance(alpha=alpha, beta=0.1)(batch))
    value = objective(outputs, batch).value
    return float(value), torch.autograd.grad(value, outputs.logp)[0]


def test_by_hand() -> None:
    weights = TokenGuidance(alpha=0.5, beta=0.1)(pair(GUIDE)[1]).weight
    torch.testing.assert_close(weights, torch.tensor([[1.1, 0.95], [1.15, 0.95]], dtype=torch.float64))
    assert evaluated(GUIDE, 0.5)[0] == pytest.approx(0.69189796, abs=1e-8)
    assert evaluated(GUIDE, 0.0)[0] == pytest.approx(0.69815968, abs=1e-8)


def test_without_guidance_it_is_dpo() -> None:
    outputs, batch = pair(GUIDE)
    objective = dpo.method().objective
    value = objective(outputs, objective.prepare(batch)).value
    want = (float(value), torch.autograd.grad(value, outputs.logp)[0])
    for got in (evaluated(GUIDE, 0.0), evaluated(torch.zeros(2, 2).double(), 0.5)):
        assert got[0] == pytest.approx(want[0])
        torch.testing.assert_close(got[1], want[1])


def test_at_the_reference_the_loss_is_log_two() -> None:
    assert evaluated(GUIDE, 2.0, torch.zeros(2, 2).double())[0] == pytest.approx(0.69314718, abs=1e-8)


def test_gradients_are_weighted_token_by_token() -> None:
    value, gradient = evaluated(GUIDE, 0.5)
    push = 1 - torch.tensor(-value).exp()  # σ(-m)
    want = -push * 0.1 * torch.tensor([[1.1, 0.95], [-1.15, -0.95]])
    torch.testing.assert_close(gradient.float(), want.float())


def test_scaling_the_guide_is_scaling_alpha() -> None:
    assert evaluated(2 * GUIDE, 0.25)[0] == pytest.approx(evaluated(GUIDE, 0.5)[0])


def test_a_constant_token_reward_is_no_shift() -> None:
    chosen = torch.tensor([True, False])
    constant = torch.full((2, 2), 0.3)
    torch.testing.assert_close(token_weights(constant, chosen, 0.5, 0.0), torch.tensor([[1.15, 1.15], [0.85, 0.85]]))


def test_weights_never_turn_round() -> None:
    assert float(token_weights(torch.tensor([[9.0]]), torch.tensor([False]), 0.5, 0.05)) == pytest.approx(0.05)


def test_simpo_by_hand() -> None:
    """Means -1 and -3 over two tokens: β h - γ = 2 · 2 - 1 = 3; the reference plays no part."""
    outputs, batch = pair(GUIDE, torch.tensor([[-0.5, -1.5], [-2.0, -4.0]], dtype=torch.float64))
    for reference in (0.0, -7.0):
        given = batch.replace(ref_logp=torch.full((2, 2), reference).double())
        assert float(SIMPO(outputs, SIMPO.prepare(given)).value.detach()) == pytest.approx(0.04858735, abs=1e-8)
    assert tgdpo.simpo_guide().stages[0].method.objective == SIMPO
    assert tgdpo.simpo_guide().stages[1] == tgdpo.method().stages[1]


def test_the_second_stage_starts_again_under_the_guide() -> None:
    problem = registry.problem("bigrams:train_size=64,test_size=8")
    policy = registry.policy("fresh:layers=1,width=16,heads=2", problem, seed=0, device="cpu")
    start = [p.detach().clone() for p in policy.parameters()]
    base = replace(dpo.method(), optimizer=Adam(learning_rate=1e-2))
    learner = guided(base, TokenGuidance(), Budget(updates=2)).learner(
        problem, policy, seed=0, budget=Budget(updates=4)
    )
    learner.step(), learner.step()
    guide = learner.policy
    metrics = learner.step()
    assert learner.policy is not guide and float(metrics["loss/policy"]) == pytest.approx(0.6931, abs=1e-3)
    model = learner.current.models["annotators.1"]
    trained = dict(guide.model.named_parameters())
    for name, parameter in model.model.named_parameters():
        torch.testing.assert_close(parameter, trained[name])
    assert any(not torch.equal(a, b) for a, b in zip(start, guide.parameters(), strict=True))
