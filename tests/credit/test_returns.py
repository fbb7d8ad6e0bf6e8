"""Returns and advantages over time: limits of λ, the two ends of an episode, cuts inside a row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from policyopt.credit.returns import (
    GeneralizedAdvantage,
    ReferencePenalty,
    RewardAtEnd,
    discounted_returns,
    generalized_advantage,
    last_step,
    whitened,
)
from policyopt.types import Rollouts

GAMMA = 0.9


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def episode(n: int = 3, t: int = 6) -> dict[str, Tensor]:
    """Rows of one episode each, terminated at the end: V(s_{t+1}) is the value of the next step."""
    value = random(n, t, seed=1)
    discount = torch.full((n, t), GAMMA, dtype=torch.float64)
    discount[:, -1] = 0.0
    continues = torch.ones(n, t, dtype=torch.bool)
    continues[:, -1] = False
    following = torch.cat([value[:, 1:], random(n, 1, seed=2)], 1)
    return {
        "rewards": random(n, t),
        "value": value,
        "next_value": following,
        "discount": discount,
        "continues": continues,
    }


def test_numbers_worked_by_hand() -> None:
    advantage = generalized_advantage(
        rewards=torch.tensor([[1.0, 0.0, 2.0]]),
        value=torch.tensor([[0.5, 1.0, 1.5]]),
        next_value=torch.tensor([[1.0, 1.5, 4.0]]),
        discount=torch.tensor([[0.5, 0.5, 0.0]]),
        continues=torch.tensor([[True, True, False]]),
        lam=0.5,
    )
    # δ = 1 + 0.5·1 - 0.5 = 1;  0 + 0.5·1.5 - 1 = -0.25;  2 - 1.5 = 0.5.  A_2 = 0.5, A_1 = -0.25 + 0.25·0.5, A_0 = 1 + 0.25·A_1
    torch.testing.assert_close(advantage, torch.tensor([[1 - 0.03125, -0.125, 0.5]]))


def test_lambda_0_is_the_temporal_difference() -> None:
    given = episode()
    want = given["rewards"] + given["discount"] * given["next_value"] - given["value"]
    torch.testing.assert_close(generalized_advantage(**given, lam=0.0), want)


def test_lambda_1_is_the_return_minus_the_value() -> None:
    given = episode()
    want = discounted_returns(given["rewards"], given["discount"]) - given["value"]
    torch.testing.assert_close(generalized_advantage(**given, lam=1.0), want)


@pytest.mark.parametrize("lam", [0.3, 0.95])
def test_any_lambda_is_the_exponential_mean_of_the_n_step_estimates(lam: float) -> None:
    """A_t = (1 - λ) Σ_n λ^(n-1) A_t^(n), the last one with the weight of all that would follow."""
    given = episode(t=5)
    rewards, value, steps = given["rewards"], given["value"], 5
    advantage = generalized_advantage(**given, lam=lam)
    for t in range(steps):
        mean = torch.zeros(3, dtype=torch.float64)
        for n in range(1, steps - t + 1):
            ahead = sum(GAMMA**k * rewards[:, t + k] for k in range(n)) - value[:, t]
            if t + n < steps:
                ahead = ahead + GAMMA**n * value[:, t + n]
            mean += lam ** (n - 1) * ahead * ((1 - lam) if t + n < steps else 1.0)
        torch.testing.assert_close(advantage[:, t], mean)


def test_a_perfect_critic_leaves_no_advantage() -> None:
    given = episode()
    value = discounted_returns(given["rewards"], given["discount"])
    given |= {"value": value, "next_value": torch.cat([value[:, 1:], torch.full((3, 1), 9.0, dtype=torch.float64)], 1)}
    for lam in (0.0, 0.5, 1.0):
        torch.testing.assert_close(generalized_advantage(**given, lam=lam), torch.zeros(3, 6, dtype=torch.float64))


def test_truncation_bootstraps_and_termination_does_not() -> None:
    given = episode()
    ended = generalized_advantage(**given, lam=0.8)
    far = given | {"next_value": given["next_value"] + torch.eye(6, dtype=torch.float64)[-1] * 100}
    torch.testing.assert_close(generalized_advantage(**far, lam=0.8), ended)
    limit = given | {"discount": torch.full((3, 6), GAMMA, dtype=torch.float64)}
    want = ended + GAMMA * given["next_value"][:, -1:] * (0.8 * GAMMA) ** torch.arange(5, -1, -1)
    torch.testing.assert_close(generalized_advantage(**limit, lam=0.8), want)


@pytest.mark.parametrize("terminated", [True, False])
def test_credit_does_not_flow_across_a_cut(terminated: bool) -> None:
    """Two episodes in a row are worth what they are worth in rows of their own."""
    given = episode(n=2, t=7)
    given["continues"] = torch.tensor([[True, True, False, True, True, True, False]]).expand(2, 7)
    given["discount"][:, 2] = 0.0 if terminated else GAMMA
    whole = generalized_advantage(**given, lam=0.9)
    for piece in (slice(0, 3), slice(3, 7)):
        apart = generalized_advantage(**{name: column[:, piece] for name, column in given.items()}, lam=0.9)
        torch.testing.assert_close(whole[:, piece], apart)
    given["rewards"][:, 3:] += 10.0
    torch.testing.assert_close(generalized_advantage(**given, lam=0.9)[:, :3], whole[:, :3])


def test_shapes_must_agree() -> None:
    given = episode() | {"value": torch.zeros(3, 1)}
    with pytest.raises(ValueError, match=r"value \(3, 1\).*must have one shape \[N, T\]"):
        generalized_advantage(**given, lam=0.9)


def test_discounted_returns() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    discount = torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.0, 0.5]])
    torch.testing.assert_close(discounted_returns(rewards, discount), torch.tensor([[2.75, 3.5, 3.0], [2.0, 2.0, 3.0]]))
    assert torch.equal(rewards[0], torch.tensor([1.0, 2.0, 3.0])), "what is given is as it was"


def test_whitened_has_mean_0_and_unbiased_variance_1_where_the_policy_chose() -> None:
    advantage, mask = random(4, 5) * 3 + 7, random(4, 5, seed=1) > -0.5
    white = whitened(advantage, mask)
    assert not white[~mask].any()
    torch.testing.assert_close(white[mask].mean(), torch.tensor(0.0, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(white[mask].var(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(whitened(torch.where(mask, advantage, 99.0), mask), white)
    torch.testing.assert_close(
        whitened(torch.tensor([[1.0, 3.0]]), torch.tensor([[True, True]])), torch.tensor([[-1, 1]]) / 2**0.5
    )


def test_whitened_of_one_step_and_of_equal_ones() -> None:
    one = torch.tensor([[2.0, 5.0]])
    assert whitened(one, torch.tensor([[True, False]])).tolist() == [[2.0, 0.0]]
    assert whitened(torch.full((2, 2), 0.5), torch.ones(2, 2, dtype=torch.bool)).tolist() == [[0.0, 0.0]] * 2


def test_last_step_is_the_last_chosen_one() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1]]).bool()
    want = torch.tensor([[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]).bool()
    assert torch.equal(last_step(mask), want)


def language_rows() -> Rollouts:
    return Rollouts(
        actions=torch.zeros(2, 3, dtype=torch.int64),
        mask=torch.tensor([[True, True, True], [True, True, False]]),
        scores={"reward": torch.tensor([1.0, -2.0])},
        behaviour_logp=torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, 0.0]]),
        ref_logp=torch.tensor([[-1.5, -1.0, -3.0], [-1.0, -2.0, 0.0]]),
        batch_size=[2],
    )


def test_the_reward_of_a_response_comes_with_its_last_token() -> None:
    batch = RewardAtEnd(gamma=0.5)(language_rows())
    assert batch.rewards.tolist() == [[0.0, 0.0, 1.0], [0.0, -2.0, 0.0]]
    assert batch.discount.tolist() == [[0.5, 0.5, 0.0], [0.5, 0.0, 0.0]]
    assert batch.terminated.tolist() == [[False, False, True], [False, True, False]]
    assert not batch.truncated.any()


def test_the_penalty_is_k1_in_the_reward() -> None:
    batch = ReferencePenalty(coefficient=0.1)(RewardAtEnd()(language_rows()))
    want = torch.tensor([[-0.05, 0.1, 1.0], [0.0, -2.1, 0.0]])
    torch.testing.assert_close(batch.rewards, want)


@pytest.mark.parametrize("whiten", [True, False])
def test_the_part_is_the_function_and_its_returns_are_the_critics_target(whiten: bool) -> None:
    value, following = random(2, 3).float(), random(2, 3, seed=1).float()
    batch = RewardAtEnd(gamma=GAMMA)(language_rows()).replace(value=value, next_value=following)
    part = GeneralizedAdvantage(lam=0.7, whiten=whiten)
    given = part(batch)
    plain = generalized_advantage(batch.rewards, value, following, batch.discount, ~batch.terminated, 0.7)
    torch.testing.assert_close(given.returns, plain + value)
    torch.testing.assert_close(given.advantage, whitened(plain, batch.mask) if whiten else plain * batch.mask)
    assert replace(part, whiten=not whiten)(batch).returns.equal(given.returns), "the target is never whitened"


def test_the_part_cuts_where_an_episode_is_truncated() -> None:
    value, following = random(2, 3).float(), random(2, 3, seed=1).float()
    batch = RewardAtEnd(gamma=GAMMA)(language_rows()).replace(value=value, next_value=following)
    cut = batch.replace(truncated=torch.tensor([[True, False, False], [False] * 3]))
    advantage = GeneralizedAdvantage(lam=0.7, whiten=False)(cut).advantage
    torch.testing.assert_close(advantage[0, 0], GAMMA * following[0, 0] - value[0, 0])
