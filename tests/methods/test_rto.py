"""RTO (arXiv 2404.18922): token rewards by hand, what reduces to PPO, the soft advantage, and the stages."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tensordict import TensorDict

from policyopt import registry
from policyopt.credit.returns import GeneralizedAdvantage, ReferencePenalty, RewardAtEnd
from policyopt.methods import rto
from policyopt.methods.rto import NoOutcome, TokenReward, token_reward
from policyopt.types import Budget, Rollouts

GUIDE, REF, LOGP = (
    torch.tensor([[-1.0, -2.0, -0.5, 0.0]]),
    torch.tensor([[-1.2, -1.5, -0.6, 0.0]]),
    torch.tensor([[-0.9, -1.8, -0.5, 0.0]]),
)


def row(guide: torch.Tensor = GUIDE) -> Rollouts:
    return Rollouts(
        actions=torch.zeros(1, 4, dtype=torch.int64),
        mask=torch.tensor([[True, True, True, False]]),
        behaviour_logp=LOGP,
        ref_logp=REF,
        guide_logp=guide,
        scores=TensorDict({"reward": torch.tensor([1.3])}, [1]),
        batch_size=[1],
    )


def rewards(*parts, guide: torch.Tensor = GUIDE) -> torch.Tensor:
    batch = RewardAtEnd()(row(guide))
    for part in parts:
        batch = part(batch)
    return batch.rewards


def test_by_hand() -> None:
    torch.testing.assert_close(token_reward(GUIDE, REF, 0.05, 0.05)[:, :3], torch.tensor([[0.01, -0.025, 0.005]]))
    got = rewards(TokenReward(), ReferencePenalty(coefficient=0.01))
    torch.testing.assert_close(got, torch.tensor([[0.007, -0.022, 1.304, 0.0]]))
    assert float(got.sum()) == pytest.approx(1.289)


def test_without_a_guide_it_is_ppo() -> None:
    want = rewards(ReferencePenalty(coefficient=0.01))
    torch.testing.assert_close(rewards(TokenReward(scale=0.0), ReferencePenalty(coefficient=0.01)), want)
    torch.testing.assert_close(rewards(TokenReward(), ReferencePenalty(coefficient=0.01), guide=REF), want)


def test_unclipped_rewards_sum_to_the_sequences() -> None:
    dense = rewards(NoOutcome(), TokenReward(clip=0.0))
    assert float(dense.sum()) == pytest.approx(0.05 * float((GUIDE - REF).sum()))


def test_advantages_without_discount_and_critic_are_what_is_still_to_come() -> None:
    batch = TokenReward()(RewardAtEnd()(row()))
    zero = torch.zeros(1, 4)
    batch = GeneralizedAdvantage(lam=1.0, whiten=False)(batch.replace(value=zero, next_value=zero))
    torch.testing.assert_close(batch.advantage[0, :3], batch.rewards[0].flip(0).cumsum(0).flip(0)[:3])
    assert float(batch.rewards[0, 3]) == float(batch.advantage[0, 3]) == 0.0  # padding


def test_the_clip_comes_after_scaling() -> None:
    torch.testing.assert_close(
        token_reward(torch.tensor([3.0, -2.0]), torch.zeros(2), 0.05, 0.05), torch.tensor([0.05, -0.05])
    )
    torch.testing.assert_close(token_reward(torch.tensor([3.0]), torch.zeros(1), 0.05, 0.0), torch.tensor([0.15]))


def soft_values(reward: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two tokens, horizon two, uniform reference: reward [1 + 2, 2] of the first state and of the two that follow → the
    optimal policy [3, 2], V(first), V(second) [2]."""
    reference = torch.full((2,), 0.5, dtype=torch.float64)
    second = beta * (reference * (reward[1:] / beta).exp()).sum(1).log()
    total = reward[0] + second
    first = beta * (reference * (total / beta).exp()).sum().log()
    policy = torch.stack(
        [
            reference * ((total - first) / beta).exp(),
            *(reference * ((reward[1 + i] - second[i]) / beta).exp() for i in range(2)),
        ]
    )
    return policy, first, second


def test_the_log_ratio_is_the_soft_advantage_and_keeps_the_optimum() -> None:
    beta, rng = 0.7, torch.Generator().manual_seed(0)
    reward = torch.randn(3, 2, generator=rng, dtype=torch.float64)
    policy, first, second = soft_values(reward, beta)
    ratio = beta * (policy / 0.5).log()
    torch.testing.assert_close(ratio[0] + first - second, reward[0], atol=1e-10, rtol=0)
    torch.testing.assert_close(ratio[1:] + second[:, None], reward[1:], atol=1e-10, rtol=0)
    torch.testing.assert_close(soft_values(ratio, beta)[0], policy, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", ["rto", "rto:dense_only"])
def test_the_stages_hand_on(name: str) -> None:
    problem = registry.problem("bigrams:train_size=40,test_size=8")
    policy = registry.policy("fresh:layers=1,width=16,heads=2", problem, seed=0, device="cpu")
    start = [p.detach().clone() for p in policy.parameters()]
    method = registry.method(name)
    one = Budget(updates=1)
    method = replace(method, stages=tuple(replace(stage, until=stage.until and one) for stage in method.stages))
    learner = method.learner(problem, policy, seed=0, budget=Budget(updates=3))
    learner.step(), learner.step()
    model = learner.current.model
    metrics = learner.step()
    assert learner.position == 2 and torch.isfinite(torch.as_tensor(metrics["loss/policy"]))
    reference = learner.current.models["annotators.1"]
    for a, b in zip(start, reference.model.parameters(), strict=True):
        assert torch.equal(a, b)  # PPO starts from the given policy, which is also its reference
    assert float(model.moments[1]) > 0 and rto.method().stages[-1].method.credit[1] == TokenReward()
