"""Trees of responses: what the segments are, what they cost, where they branch, and what their values are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from policyopt.models.language import LanguagePolicy, Sampling
from policyopt.problems.language.arithmetic import Arithmetic
from policyopt.rollouts.language import respond
from policyopt.rollouts.tree import (
    Branching,
    Budgeted,
    ByProbability,
    Divergence,
    Fallback,
    Fixed,
    Forest,
    Growth,
    grow,
    repeats,
)
from policyopt.types import generator

PROBLEM = Arithmetic(terms=(2, 5), max_new_tokens=32)
IDS = [5, 9, 2]


class Endless(LanguagePolicy):
    """No response ends by itself."""

    @property
    def end_tokens(self) -> Tensor:
        return torch.tensor([], dtype=torch.int64)


@pytest.fixture
def endless(policy: LanguagePolicy) -> LanguagePolicy:
    return Endless(policy.model, policy.tokenizer)


class Ending(LanguagePolicy):
    """Ten of a hundred tokens end a response."""

    @property
    def end_tokens(self) -> Tensor:
        return torch.arange(10, 20)


@pytest.fixture
def ending(policy: LanguagePolicy) -> LanguagePolicy:
    with torch.no_grad():
        policy.head.weight *= 0.3
    return Ending(policy.model, policy.tokenizer)


def grown(policy: LanguagePolicy, branching: Branching, seed: int = 0, problem: Any = PROBLEM) -> Forest:
    return grow(policy, problem, IDS, branching, Sampling(), generator(seed, "sample"), generator(seed, "tree"))


@torch.no_grad()
def likelihood_agrees(policy: LanguagePolicy, batch: Any) -> None:
    """What was recorded while sampling is what the training forward says of the assembled rows."""
    torch.testing.assert_close(policy.evaluate(batch).logp, batch.old_logp, atol=2e-4, rtol=0)


BRANCHINGS = [
    Fixed(factors=(3, 2, 2), segment=3),
    Budgeted(width=6, segment=4, first=(1, 3)),
    Budgeted(
        width=6, segment=4, first=(3, 3), divergence=ByProbability(), fallback=Fallback(ended=False, longest=True)
    ),
    Budgeted(width=5, segment=7, first=(2, 2), fallback=Fallback(restart=True)),
]


@pytest.mark.parametrize("branching", BRANCHINGS)
def test_rows_are_whole_responses_with_the_probabilities_of_their_tokens(
    ending: LanguagePolicy, branching: Branching
) -> None:
    forest = grown(ending, branching)
    batch, sampled = forest.rollouts(ending, PROBLEM, IDS)
    likelihood_agrees(ending, batch)
    assert batch.prompt_id.tolist() == [IDS[tree] for tree in batch.group.tolist()]
    texts = ending.decode(batch.actions, batch.length)
    assert torch.equal(PROBLEM.score(batch.prompt_id.tolist(), texts)["reward"], batch.scores["reward"])
    own = [batch.actions[i, : int(n)] for i, n in enumerate(batch.length)]
    ends = [bool(torch.isin(row, ending.end_tokens).any()) for row in own]
    assert ends == sampled.finished.tolist()
    limit = branching.limit(PROBLEM.max_new_tokens)
    assert all(end or len(row) == limit for end, row in zip(ends, own, strict=True))
    assert bool(((batch.segment >= len(IDS)) == batch.mask).all())


@pytest.mark.parametrize("branching", BRANCHINGS)
def test_responses_share_exactly_the_segments_that_they_share(ending: LanguagePolicy, branching: Branching) -> None:
    forest = grown(ending, branching)
    batch, _ = forest.rollouts(ending, PROBLEM, IDS)
    first: dict[int, tuple[list[int], list[float]]] = {}
    for row in range(len(batch)):
        for node in batch.segment[row, batch.mask[row]].unique().tolist():
            upto = int((batch.segment[row] == node).nonzero().max()) + 1
            seen = (batch.actions[row, :upto].tolist(), batch.old_logp[row, :upto].tolist())
            assert first.setdefault(node, seen) == seen
    assert sum(1 for _ in first) == len(forest) - len(IDS)
    counted = sum(int(forest.length[node]) for node in first)
    assert counted == forest.sampled_tokens


@pytest.mark.parametrize("branching", BRANCHINGS[:3])
def test_edges_train_a_segment_behind_all_that_stands_before_it(ending: LanguagePolicy, branching: Branching) -> None:
    forest = grown(ending, branching)
    nodes = torch.arange(len(IDS), len(forest))
    edges = forest.edges(nodes, IDS)
    likelihood_agrees(ending, edges)
    assert torch.equal(edges.group, forest.parent[nodes])
    assert torch.equal(edges.length, forest.length[nodes])
    asked = torch.tensor([len(forest.prompts[tree]) for tree in forest.tree[nodes].tolist()])
    assert torch.equal(edges.prompt_length, asked + forest.start[nodes])


def test_a_full_binary_tree_samples_what_the_formula_says(endless: LanguagePolicy) -> None:
    """M (2^(D+1) - 2) against D M 2^D tokens of independent responses: 30 M and 64 M for D = 4."""
    segment, depth = 3, 4
    problem = Arithmetic(terms=3, max_new_tokens=depth * segment)
    forest = grown(endless, Fixed(factors=(2,) * depth, segment=segment), problem=problem)
    assert forest.sampled_tokens == len(IDS) * 30 * segment
    batch, _ = forest.rollouts(endless, problem, IDS)
    assert int(batch.length.sum()) == len(IDS) * 64 * segment
    asked = sum(map(len, forest.prompts))
    inner = 2 + 4 + 8  # nodes that are continued: their last token is computed once; no leaf's last token is
    assert forest.forward_tokens == asked + len(IDS) * (30 * (segment - 1) + inner)


def test_one_level_is_independent_sampling(endless: LanguagePolicy) -> None:
    forest = grown(endless, Fixed(factors=(4,), segment=1))
    want = respond(endless, PROBLEM, IDS, 4, Sampling(), generator(0, "sample"))
    batch, _ = forest.rollouts(endless, PROBLEM, IDS)
    assert torch.equal(batch.actions, want.actions)
    assert (forest.sampled_tokens, forest.forward_tokens) == (want.sampled_tokens, want.forward_tokens)
    assert batch.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_kept_keys_and_values_change_nothing_but_the_cost(policy: LanguagePolicy) -> None:
    branching = Budgeted(width=6, segment=4, first=(1, 3))
    naive = grown(Endless(policy.model, policy.tokenizer, shared_prefixes=False), branching)
    shared = grown(Endless(policy.model, policy.tokenizer, shared_prefixes=True), branching)
    assert torch.equal(naive.columns["actions"], shared.columns["actions"])
    assert naive.sampled_tokens == shared.sampled_tokens
    assert shared.forward_tokens < naive.forward_tokens / 3


@pytest.mark.parametrize("seed", range(3))
def test_no_prefix_is_computed_again(ending: LanguagePolicy, seed: int) -> None:
    """Not even where a tree goes on from several levels at once: of what is kept, only the last token is."""
    forest = grown(ending, Budgeted(width=8, segment=4, first=(2, 5)), seed)
    levels = [forest.depth[forest.parent[forest.step == step]].unique().tolist() for step in range(len(forest.steps))]
    assert any(len(found) > 1 for found in levels), "no fallback beside an active path: take another seed"
    again = int((forest.start[len(IDS) :] > 0).sum())
    root = sum(len(forest.prompts[int(t)]) for t in range(len(IDS)))
    restarted = int((forest.start[len(IDS) :] == 0).sum())
    assert forest.forward_tokens <= root + forest.sampled_tokens + again + restarted


def test_values_by_hand(endless: LanguagePolicy) -> None:
    problem = Arithmetic(terms=3, max_new_tokens=32)
    forest = grown(endless, Fixed(factors=(2, 2), segment=2), problem=problem)
    reward = torch.tensor([1.0, 0, 0, 0] * 3)
    value = forest.values(forest.leaves, reward)
    root, first, second = 1, 3 + 2, 3 + 3  # the second tree: its root and the two nodes behind it
    assert forest.parent[[first, second]].tolist() == [root, root]
    assert value[[root, first, second]].tolist() == [0.25, 0.5, 0.0]
    difference = value - value[forest.parent]
    assert difference[[first, second]].tolist() == [0.25, -0.25]
    leaves = forest.leaves[4:8]
    assert difference[leaves].tolist() == [0.5, -0.5, 0.0, 0.0]


# -- budgets


def sizes(forest: Forest) -> list[int]:
    return forest.tree[forest.leaves].bincount().tolist()


def test_every_tree_is_filled_to_its_width_and_not_beyond(ending: LanguagePolicy) -> None:
    narrow = []
    for seed in range(4):
        assert sizes(grown(ending, Budgeted(width=8, segment=4, first=(2, 5)), seed)) == [8, 8, 8]
        narrow += sizes(grown(ending, Budgeted(width=8, segment=4, first=(1, 2), fallback=None), seed))
    assert max(narrow) <= 8 and min(narrow) < 8
    assert sizes(grown(ending, Budgeted(width=3, segment=4, first=(5, 5)))) == [5, 5, 5]


class Watched(Budgeted):
    """Asserts that finished and active paths together never exceed the width, and that no path is dropped."""

    def __call__(self, forest: Forest, fresh: Tensor, rng: torch.Generator) -> Growth:
        growth = super().__call__(forest, fresh, rng)
        finished = [n for n in forest.leaves.tolist() if not bool(forest.open[n])]
        for tree in range(len(forest.prompts)):
            own = [c for n, c in zip(growth.nodes, growth.copies, strict=True) if forest.tree[n] == tree]
            done = sum(int(forest.tree[n]) == tree for n in finished)
            assert done + sum(own) <= max(self.width, self.first[1])
        assert set(fresh[forest.open[fresh]].tolist()) <= set(growth.nodes)
        return growth


def test_the_budget_is_never_exceeded(ending: LanguagePolicy) -> None:
    for seed in range(3):
        grown(ending, Watched(width=8, segment=3, first=(2, 8)), seed)


def test_a_level_gets_what_is_missing_but_at_most_twice_its_paths(endless: LanguagePolicy) -> None:
    forest = grown(endless, Budgeted(width=16, segment=8, first=(3, 3)))
    counts = [int(((forest.depth == d) & (forest.tree == 0)).sum()) for d in range(1, 5)]
    assert counts == [3, 6, 12, 16]
    assert set(forest.length[len(IDS) :].tolist()) == {8}
    assert sizes(forest) == [16, 16, 16]


def test_even_allocation_gives_the_remainder_to_the_last(endless: LanguagePolicy) -> None:
    forest = grown(endless, Budgeted(width=2, segment=8, first=(2, 2)))
    assert Divergence()(forest, [3, 4, 5], 7) == [2, 2, 3]
    assert Divergence()(forest, [3, 4, 5], 3) == [1, 1, 1]
    assert Divergence()(forest, [3, 4], 4) == [2, 2]


def test_unlikely_paths_get_more_copies_and_likely_ones_with_the_other_sign(endless: LanguagePolicy) -> None:
    forest = grown(endless, Budgeted(width=3, segment=8, first=(3, 3)))
    forest.path_logp[[3, 4, 5]] = torch.tensor([-1.0, -3.0, -2.0])
    assert ByProbability()(forest, [3, 4, 5], 9) == [1 + 1, 1 + 4, 1 + 1]  # of 6: 0.54, 3.99, 1.47
    assert ByProbability(likely=True)(forest, [3, 4, 5], 9) == [1 + 4, 1 + 1, 1 + 1]
    assert ByProbability(temperature=1e6)(forest, [3, 4, 5], 9) == [3, 3, 3]
    assert sum(ByProbability(mean=True, last=True)(forest, [3, 4, 5], 11)) == 11


def test_fallback_goes_on_from_proper_prefixes_of_finished_responses(ending: LanguagePolicy) -> None:
    forest = grown(ending, Budgeted(width=4, segment=4, first=(4, 4), fallback=None))
    finished = [n for n in forest.leaves.tolist() if int(forest.tree[n]) == 1]
    ended = [n for n in finished if bool(forest.ended[n])]
    assert ended and len(ended) < len(finished)
    lines = forest.line(torch.tensor(ended)).tolist()
    ancestors = {1} | {node for line, leaf in zip(lines, ended, strict=True) for node in line if node != leaf}
    seen: set[int] = set()
    for seed in range(20):
        chosen = list(Fallback()(forest, finished, 7, 2, generator(seed, "x")))
        assert [copies for _, copies in chosen] == [2, 2, 2, 1]
        seen |= {node for node, _ in chosen}
    assert seen == {n for n in ancestors if n >= 0}
    assert list(Fallback(restart=True)(forest, finished, 7, 2, generator(0, "x"))) == [(1, 7)]
    forest.ended[:] = False
    assert list(Fallback()(forest, finished, 7, 2, generator(0, "x"))) == [(1, 7)]


def test_repetition_stops_a_path(endless: LanguagePolicy) -> None:
    assert repeats("ab" * 23, 32, 8)  # 15 windows, 8 of them begin with a
    assert not repeats("ab" * 22 + "a", 32, 8)
    assert not repeats("abcdefghij" * 3, 32, 8)
    stopped = grown(endless, Budgeted(width=3, segment=8, first=(3, 3), repetition=(1, 2), fallback=None))
    texts = endless.decode(stopped.columns["actions"], stopped.length)
    inner = set(stopped.parent[stopped.parent >= len(IDS)].tolist())
    again = {n for n in range(len(IDS), len(stopped)) if len(set(texts[n])) < len(texts[n])}
    assert again and not inner & again


def test_a_depth_limits_the_response(endless: LanguagePolicy) -> None:
    forest = grown(endless, Budgeted(width=4, segment=5, depth=2, first=(2, 2)))
    assert (forest.start + forest.length)[forest.leaves].unique().tolist() == [10]
    assert Budgeted(segment=5).limit(32) == 35


def test_the_context_ends_a_path(policy: LanguagePolicy) -> None:
    endless = Endless(policy.model, policy.tokenizer)
    endless.context = 20
    forest = grown(endless, Budgeted(width=4, segment=4, first=(2, 2)))
    whole = [len(forest.prompts[int(forest.tree[n])]) + int(forest.start[n] + forest.length[n]) for n in forest.leaves]
    assert max(whole) <= 20
    assert sizes(forest) == [4, 4, 4]


@dataclass(frozen=True, kw_only=True)
class Stopping(Arithmetic):
    stop: tuple[str, ...] = (";",)


def test_stop_texts_end_a_response(policy: LanguagePolicy) -> None:
    problem = Stopping(terms=3, max_new_tokens=32)
    forest = grown(policy, Fixed(factors=(8, 2), segment=16), problem=problem)
    texts: Sequence[str] = policy.decode(forest.columns["actions"], forest.length)
    stopped = [n for n, text in enumerate(texts) if text.endswith(";")]
    assert stopped and all(bool(forest.ended[n]) and not (forest.parent == n).any() for n in stopped)


def test_impossible_trees_are_refused() -> None:
    with pytest.raises(ValueError, match="positive factors"):
        Fixed(factors=())
    with pytest.raises(ValueError, match="in order"):
        Budgeted(first=(4, 2))
