"""TreePO (arXiv 2508.17445): advantages of a small tree by hand, their limits, trees as a collector, and its variants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from policyopt import registry
from policyopt.credit.groups import GroupMean
from policyopt.credit.returns import Whitened
from policyopt.methods import treepo
from policyopt.methods.treepo import (
    Ancestors,
    Progress,
    Siblings,
    SoftOverlong,
    Trees,
    ancestor_advantage,
    node_values,
    path,
    segment_progress,
    sibling_normalized,
)
from policyopt.models.language import LanguagePolicy
from policyopt.problems.language.arithmetic import Arithmetic
from policyopt.rollouts.tree import Budgeted, Fixed
from policyopt.types import Clock, Rollouts, Scores

REWARD = torch.tensor([1.0, 0.0, 0.0, 0.0])
GROUP = torch.zeros(4, dtype=torch.int64)
NODES = torch.tensor([[1, 3], [1, 4], [2, 5], [2, 6]])  # a/a1, a/a2, b/b1, b/b2


def tree_rows(segment: Tensor = NODES, reward: Tensor = REWARD) -> Rollouts:
    """Rows of one token a segment (-1: none)."""
    count = len(segment)
    return Rollouts(
        actions=torch.zeros_like(segment),
        mask=segment >= 0,
        segment=segment,
        group=torch.zeros(count, dtype=torch.int64),
        length=(segment >= 0).sum(1),
        scores=TensorDict({"reward": reward}, [count]),
        batch_size=[count],
    )


def close(found: Tensor, want: Any) -> None:
    torch.testing.assert_close(found, torch.tensor(want), atol=1e-6, rtol=0)


def test_ancestors_by_hand() -> None:
    close(ancestor_advantage(REWARD, GROUP, NODES), [0.625, -0.375, -0.125, -0.125])
    weighted = ancestor_advantage(REWARD, GROUP, NODES, by_size=True)
    close(weighted, [0.6666667, -0.3333333, -0.1666667, -0.1666667])
    # b's responses are alike: only the whole tree counts for them
    close(ancestor_advantage(REWARD, GROUP, NODES, skip_alike=True), [0.625, -0.375, -0.25, -0.25])


def test_whitened_by_hand() -> None:
    single = ancestor_advantage(REWARD, GROUP, NODES)[:, None]
    batch = Whitened()(tree_rows(NODES[:, :1]).replace(advantage=single))
    close(batch.advantage[:, 0], [1.4433756, -0.8660254, -0.2886751, -0.2886751])


def test_steps_of_weight_zero_are_not_whitened() -> None:
    batch = Ancestors()(tree_rows()).replace(weight=torch.tensor([[1.0, 0.0]] * 4))
    close(Whitened()(batch).advantage[:, 0], [1.4433756, -0.8660254, -0.2886751, -0.2886751])
    assert not Whitened()(batch).advantage[:, 1].any()


def test_a_tree_of_one_level_has_the_group_mean_as_baseline() -> None:
    batch = tree_rows(torch.arange(1, 5)[:, None])
    close(Ancestors()(batch).advantage[:, 0], [0.75, -0.25, -0.25, -0.25])
    torch.testing.assert_close(Ancestors()(batch).advantage, GroupMean()(batch).advantage)


def test_equal_rewards_give_nothing() -> None:
    for credit in (Ancestors(), Ancestors(by_size=True), Progress(), Siblings()):
        assert not credit(tree_rows(reward=torch.full((4,), 0.7))).advantage.any()


def test_sums_to_zero_where_all_count_as_many_levels_and_not_in_general() -> None:
    reward = torch.tensor([0.3, 1.0, -2.0, 0.9])
    assert float(ancestor_advantage(reward, GROUP, NODES).sum()) == pytest.approx(0.0, abs=1e-6)
    uneven = torch.tensor([[1, 3], [1, 4], [1, 5], [2, -1]])
    assert abs(float(ancestor_advantage(reward, GROUP, uneven).sum())) > 0.1


def test_alone_in_its_tree_a_response_has_no_baseline() -> None:
    group = torch.tensor([0, 1, 1])
    nodes = torch.tensor([[5, 6], [7, -1], [8, -1]])
    close(ancestor_advantage(torch.tensor([0.7, 1.0, 0.0]), group, nodes), [0.7, 0.5, -0.5])


def by_definition(reward: Tensor, group: Tensor, nodes: Tensor, by_size: bool) -> Tensor:
    """Ancestors as sets of rows, one row after the other."""
    found = []
    for i in range(len(reward)):
        sets = [(group == group[i]).nonzero().flatten()]
        sets += [(nodes[:, j] == nodes[i, j]).nonzero().flatten() for j in range(nodes.shape[1]) if nodes[i, j] >= 0]
        sets = [rows for level, rows in enumerate(sets) if level == 0 or len(rows) > 1]
        weight = torch.tensor([float(len(rows)) if by_size else 1.0 for rows in sets])
        difference = torch.stack([reward[i] - (reward[rows].mean() if len(rows) > 1 else 0.0) for rows in sets])
        found.append((weight * difference).sum() / weight.sum())
    return torch.stack(found)


def random_tree(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    nodes, names = torch.full((24, 4), -1), 100
    group = torch.arange(24) // 8
    for rows in group.unique():
        frontier = [((group == rows).nonzero().flatten(), 0)]
        while frontier:
            members, level = frontier.pop()
            for piece in members.tensor_split(int(torch.randint(1, 4, (), generator=rng))):
                if len(piece) and level < 4:
                    nodes[piece, level], names = names, names + 1
                    if len(piece) > 1 or bool(torch.rand((), generator=rng) < 0.5):
                        frontier.append((piece, level + 1))
    return torch.rand(24, generator=rng), group, nodes


@pytest.mark.parametrize("by_size", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_ancestors_against_their_definition(seed: int, by_size: bool) -> None:
    reward, group, nodes = random_tree(seed)
    want = by_definition(reward, group, nodes, by_size)
    torch.testing.assert_close(ancestor_advantage(reward, group, nodes, by_size=by_size), want)


def test_progress_by_hand() -> None:
    leaf = [4 / 7, -2 / 7, -1 / 7, -1 / 7]  # sizes 4, 2 and 1: (4 · 0.75 + 2 · 0.5 + 0) / 7, …
    first = [(leaf[0] + leaf[1]) / 2] * 2 + [(leaf[2] + leaf[3]) / 2] * 2
    found = segment_progress(REWARD, GROUP, NODES)
    close(found[:, 0], first)
    close(found[:, 1], [a - b for a, b in zip(leaf, first, strict=True)])
    close(found.sum(1), leaf)  # the root's value is 0: progress adds up to the leaf's value
    eta = segment_progress(REWARD, GROUP, NODES, eta=0.5)
    close(eta[:, 1], [a - 0.5 * b for a, b in zip(leaf, first, strict=True)])
    close(eta[:, 0], first)
    close(Progress()(tree_rows()).advantage, found.tolist())


def test_values_are_means_of_children_and_not_of_leaves() -> None:
    nodes = torch.tensor([[1, 3], [1, 4], [1, 5], [2, -1]])
    value = node_values(torch.tensor([1.0, 1.0, 0.0, 0.0]), GROUP, nodes)
    assert value[:, 0].tolist() == pytest.approx([1 / 3] * 4)
    assert value[:, 1].tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 0.0])


def test_siblings_are_compared_in_their_deviation() -> None:
    found = sibling_normalized(REWARD, GROUP, NODES)
    close(found, [[1.0, 1.0], [1.0, -1.0], [-1.0, 0.0], [-1.0, 0.0]])
    alone = sibling_normalized(torch.tensor([1.0, 0.0]), GROUP[:2], torch.tensor([[1, 2, 3], [1, 2, 4]]))
    close(alone, [[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])


def test_a_node_is_found_at_all_its_tokens() -> None:
    segment = torch.tensor([[7, 7, 9, -1], [7, 7, 8, 8], [6, -1, -1, -1]])
    nodes, level = path(segment, segment >= 0)
    assert nodes.tolist() == [[7, 9], [7, 8], [6, -1]]
    assert level.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]


def test_the_overlong_penalty_by_hand() -> None:
    batch = tree_rows(torch.arange(60).view(3, 20) + 1, torch.ones(3)).replace(length=torch.tensor([10, 15, 20]))
    close(SoftOverlong(limit=20, buffer=10)(batch).scores["reward"], [1.0, 0.5, 0.0])


# -- the collector


@dataclass(frozen=True, kw_only=True)
class Parity(Arithmetic):
    """Every prompt with an odd number is always answered rightly, the others now and then."""

    terms: int | tuple[int, int] = (2, 4)

    def components(self, ids: Any, responses: Any, split: str = "train") -> Scores:
        right = [float(i % 2 or len(text) % 2) for i, text in zip(ids, responses, strict=True)]
        return {"accuracy": torch.tensor(right)}


SMALL = Budgeted(width=6, segment=3, first=(2, 3))


def test_dynamic_sampling_drops_trees_without_difference_and_asks_on(policy: LanguagePolicy) -> None:
    problem = Parity(max_new_tokens=12)
    single = Trees(prompts=4, branching=SMALL)(policy, problem, Clock(seed=1))
    several = Trees(prompts=4, branching=SMALL, rounds=8)(policy, problem, Clock(seed=1))
    batch = several.batches["rollouts"]
    assert batch.group.unique().tolist() == [0, 1, 2, 3]
    assert not (batch.prompt_id % 2).any()
    assert all(len(batch.scores["reward"][batch.group == g].unique()) == 2 for g in range(4))
    assert float(several.metrics["cost/tokens"]) > float(single.metrics["cost/tokens"])
    assert float(several.metrics["cost/forward_tokens"]) > float(single.metrics["cost/forward_tokens"])
    nothing = Trees(prompts=4, branching=SMALL, rounds=2)(policy, Arithmetic(terms=6, max_new_tokens=36), Clock(seed=1))
    assert len(nothing.batches["rollouts"].group.unique()) == 4


def test_shared_segments_are_paid_for_once(policy: LanguagePolicy) -> None:
    collected = Trees(prompts=4, branching=SMALL)(policy, Parity(max_new_tokens=12), Clock(seed=1))
    batch = collected.batches["rollouts"]
    tokens = float(collected.metrics["cost/tokens"])
    assert tokens < int(batch.length.sum())
    distinct = {
        (int(g), *row[:n])
        for g, row, m in zip(batch.group, batch.actions.tolist(), batch.length.tolist(), strict=True)
        for n in range(1, m + 1)
    }
    assert tokens >= len(distinct)
    assert float(collected.metrics["tree/responses"]) == 6.0


def test_a_step_is_repeatable_and_runs_with_every_variant() -> None:
    problem = Arithmetic(terms=(2, 4), max_new_tokens=12)
    for name in (None, *treepo.VARIANTS):
        method = treepo.method() if name is None else getattr(treepo, name)()
        branching = method.collector.branching
        collector = replace(method.collector, prompts=2, branching=replace(branching, width=4, segment=3, depth=4))
        method = replace(method, collector=collector, minibatches=1)
        losses = []
        for _ in range(2):
            policy = registry.policy("tiny", problem, seed=0, device="cpu")
            learner = method.learner(problem, policy, seed=3)
            losses.append(float(learner.step()["loss/policy"]))
        assert losses[0] == losses[1]


def test_a_tree_of_single_segments_has_the_gradient_of_independent_samples() -> None:
    """One level, nothing shared: REINFORCE++ with the group's mean as baseline."""
    problem = Arithmetic(terms=(2, 4), max_new_tokens=12)
    norms = []
    for credit in (Ancestors(), GroupMean()):
        collector = Trees(prompts=4, branching=Fixed(factors=(8,)))
        method = replace(treepo.method(), collector=collector, credit=(credit, Whitened()))
        policy = registry.policy("tiny", problem, seed=0, device="cpu")
        norms.append(float(method.learner(problem, policy, seed=0).step()["gradient/norm"]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-5) and norms[0] > 0


def test_impossible_collections_are_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Trees(prompts=0)
