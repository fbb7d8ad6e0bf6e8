"""The knapsack problem: exact optimum, discarding, bad input."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from policyopt.problems.decision.construction import construct, solved
from policyopt.problems.decision.knapsack import Knapsack, PartialSelection, best_selection
from policyopt.types import generator


def selection(value, weight, remaining, gone=()):
    gone = torch.tensor([list(gone)], dtype=torch.long).view(1, -1)
    return PartialSelection(
        value=torch.tensor([value]),
        weight=torch.tensor([weight]),
        remaining=torch.tensor([remaining]),
        gone=gone,
        batch_size=[1],
    )


def test_dynamic_programming_is_exact():
    rng = np.random.default_rng(0)
    value, weight = rng.integers(1, 30, (40, 9)), rng.integers(1, 30, (40, 9))
    chosen = best_selection(value, weight, 60)
    assert ((weight * chosen).sum(1) <= 60).all()
    subsets = np.array(list(itertools.product((False, True), repeat=9)))
    fits = weight @ subsets.T <= 60
    np.testing.assert_array_equal((value * chosen).sum(1), (value @ subsets.T * fits).max(1))


def test_what_remains_is_capacity_and_items():
    seen = selection([10, 60, 30, 20], [10, 50, 40, 90], 45, gone=[0]).tail()
    assert seen["choice"].tolist() == [[1, 2, 3]]
    assert seen["legal"].tolist() == [[False, True, False]]
    torch.testing.assert_close(seen["features"], torch.tensor([[[0.6, 0.5, 0.45], [0.3, 0.4, 0.45], [0.2, 0.9, 0.45]]]))


def test_an_item_that_does_not_fit_is_discarded_for_nothing():
    partial = selection([10, 60, 30], [10, 50, 40], 30, gone=[0])
    assert partial.done.tolist() == [True]
    assert partial.tail()["legal"].tolist() == [[True, False]]
    following, reward = partial.step(torch.tensor([1]))
    assert float(reward) == 0.0
    assert following.remaining.tolist() == [30]
    assert following.tail()["choice"].tolist() == [[2]]
    with pytest.raises(ValueError, match="instance 0 chose an item that is gone"):
        following.step(torch.tensor([1]))


def test_instances_that_finish_early_wait_for_the_others():
    problem = Knapsack(size=8, test_sizes=(8,), train_instances=5, test_instances=30)

    def lightest(partial, memory, rng, greedy):
        seen = partial.tail()
        weight = seen["features"][..., 1].masked_fill(~seen["legal"], torch.inf)
        return seen["choice"].gather(1, weight.argmin(1, keepdim=True))[:, 0], {}, memory

    start, _, best = solved(problem, "test", 8)
    solution, returns = construct(start, lightest, generator(0, "act"))
    order = start.weight.sort(1)
    taken = order.values.cumsum(1) <= problem.capacity_per_item * 8
    torch.testing.assert_close(returns, (start.value.gather(1, order.indices) * taken).sum(1).float())
    assert bool(solution.done.all())
    assert bool((returns <= best).all())


def test_reference_is_within_capacity_and_its_value_is_reported():
    problem = Knapsack(train_instances=250)
    start, actions, returns = solved(problem, "train", 30)
    chosen = torch.zeros(250, 31, dtype=torch.bool).scatter(1, torch.where(actions < 0, 30, actions), True)[:, :30]
    assert bool(((start.weight * chosen).sum(1) <= 750).all())
    torch.testing.assert_close((start.value * chosen).sum(1).float(), returns)


def test_variation_reorders_the_optimal_items():
    problem = Knapsack(train_instances=20)
    start, actions, _ = solved(problem, "train", 30)
    _, varied = problem.vary(start, actions, generator(0, "vary"))
    assert torch.equal(varied.sort(1).values, actions.sort(1).values)
    assert torch.equal(varied < 0, actions < 0)
    assert not torch.equal(varied, actions)
