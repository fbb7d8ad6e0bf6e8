"""Group baselines against numbers worked by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from policyopt.credit import groups, outcomes
from policyopt.credit.groups import (
    Credit,
    GroupMean,
    GroupNormalized,
    LeaveOneOut,
    group_deviation,
    group_mean,
    group_normalized,
    leave_one_out,
)
from policyopt.credit.outcomes import BatchBaseline, Constant, Outcome
from policyopt.types import Rollouts

# group 7: rewards 1, 2, 6 (mean 3, deviations -2, -1, 3, variance 14 / 2 = 7); group -1: 0, 1 (mean 0.5, variance 0.5)
GROUP = torch.tensor([7, -1, 7, 7, -1])
REWARD = torch.tensor([1.0, 0.0, 2.0, 6.0, 1.0])


def test_mean_and_unbiased_deviation() -> None:
    torch.testing.assert_close(group_mean(REWARD, GROUP), torch.tensor([3.0, 0.5, 3.0, 3.0, 0.5]))
    deviation = torch.tensor([7.0, 0.5, 7.0, 7.0, 0.5]).sqrt()
    torch.testing.assert_close(group_deviation(REWARD, GROUP), deviation)


def test_normalized_adds_epsilon_to_the_deviation() -> None:
    for epsilon in (0.0, 1e-6, 0.5):
        want = torch.tensor([-2.0, -0.5, -1.0, 3.0, 0.5]) / (torch.tensor([7.0, 0.5, 7.0, 7.0, 0.5]).sqrt() + epsilon)
        torch.testing.assert_close(group_normalized(REWARD, GROUP, epsilon), want)


def test_leave_one_out_is_the_reward_minus_the_mean_of_the_others() -> None:
    want = torch.tensor([1.0 - 4.0, 0.0 - 1.0, 2.0 - 3.5, 6.0 - 1.5, 1.0 - 0.0])
    torch.testing.assert_close(leave_one_out(REWARD, GROUP), want)


FUNCTIONS: list[Callable[[Tensor, Tensor], Tensor]] = [group_mean, group_deviation, group_normalized, leave_one_out]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_order_of_rows_and_the_names_of_groups_do_not_matter(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    rng = torch.Generator().manual_seed(0)
    group, reward = torch.arange(12).repeat_interleave(4), torch.randn(48, generator=rng)
    want = function(reward, group)
    order = torch.randperm(48, generator=rng)
    names = torch.randint(-(10**9), 10**9, (12,), generator=rng)
    assert len(names.unique()) == 12
    torch.testing.assert_close(function(reward[order], names[group][order]), want[order])


@pytest.mark.parametrize("function", [group_deviation, group_normalized, leave_one_out])
def test_a_group_of_one_has_no_baseline(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(
        ValueError, match="needs at least 2 samples a prompt, but a group has only one: set samples to 2"
    ):
        function(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0, 0, 1]))


@pytest.mark.parametrize("function", [group_normalized, leave_one_out])
@pytest.mark.parametrize("size", [2, 3, 7, 8])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, 1e6])
def test_a_group_without_variance_gets_exactly_zero(
    function: Callable[[Tensor, Tensor], Tensor], size: int, reward: float
) -> None:
    advantage = function(torch.full((2 * size,), reward), torch.arange(2 * size) % 2)
    assert torch.equal(advantage, torch.zeros(2 * size))


def rows(reward: Tensor = REWARD) -> Rollouts:
    mask = torch.tensor(
        [[True, True, True], [True, False, False], [False, True, True], [True, True, False], [True] * 3]
    )
    return Rollouts(
        actions=torch.zeros(5, 3, dtype=torch.int64),
        mask=mask,
        scores={"reward": reward, "other": -reward},
        group=GROUP,
        batch_size=[5],
    )


PARTS: dict[Credit, Tensor] = {
    Outcome(): REWARD,
    Constant(): torch.ones(5),
    BatchBaseline(): REWARD - 2.0,
    GroupMean(): torch.tensor([-2.0, -0.5, -1.0, 3.0, 0.5]),
    GroupNormalized(epsilon=0.5): group_normalized(REWARD, GROUP, 0.5),
    LeaveOneOut(): leave_one_out(REWARD, GROUP),
}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_parts_spread_one_number_over_the_chosen_steps(part: Credit) -> None:
    batch = rows()
    assert set(part.needs) <= {"scores", "group"}
    assert part.gives == ("advantage",)
    advantage = part(batch).advantage
    torch.testing.assert_close(advantage, PARTS[part][:, None] * batch.mask)
    assert batch.advantage is None, "the batch that was given is as it was"


def test_every_part_of_both_files_is_tested() -> None:
    known = [*vars(groups).values(), *vars(outcomes).values()]
    own = {c for c in known if isinstance(c, type) and issubclass(c, Credit) and c is not Credit}
    assert own == {type(part) for part in PARTS}
