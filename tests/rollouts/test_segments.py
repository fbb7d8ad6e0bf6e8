"""Cut points: the right prefixes, scored as whole responses, identical ones once, and values that are exact in the limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from policyopt.models.language import Continuations, LanguagePolicy, Sampling
from policyopt.problems.language.arithmetic import Arithmetic
from policyopt.rollouts.language import respond
from policyopt.rollouts.segments import branch, distinct, monte_carlo_values
from policyopt.types import Scores, generator


@dataclass(frozen=True, kw_only=True)
class Sevens(Arithmetic):
    """The score is the number of sevens in the whole response, and 100 for each unit of the prompt's number."""

    terms: int | tuple[int, int] = (2, 5)
    max_new_tokens: int = 16

    def components(self, ids: Any, responses: Any, split: str = "train") -> Scores:
        counts = [100.0 * i + text.count("7") for i, text in zip(ids, responses, strict=True)]
        return {"accuracy": torch.tensor(counts)}


PROBLEM, IDS = Sevens(), [3, 8]


@pytest.fixture
def narrow(policy: LanguagePolicy) -> LanguagePolicy:
    """Writes "7", "," and its end token alone, so that sevens are frequent and responses end at different lengths."""
    with torch.no_grad():
        policy.head.weight.mul_(0.05)
        policy.head.bias = torch.nn.Parameter(torch.full((len(policy.head.weight),), -30.0))
        policy.head.bias[policy.encode(["7,"])[0]] = 0.0
        policy.head.bias[policy.end_tokens] = -1.0
    return policy


def sampled(policy: LanguagePolicy, samples: int = 3, keep: bool = True) -> Continuations:
    return respond(policy, PROBLEM, IDS, samples, Sampling(), generator(0, "responses"), keep=keep)


def sevens(policy: LanguagePolicy, out: Continuations, row: int, position: int) -> int:
    return policy.decode(out.actions[row : row + 1], torch.tensor([position]))[0].count("7")


def test_a_branch_continues_its_own_prefix_and_is_scored_as_a_whole(narrow: LanguagePolicy) -> None:
    out = sampled(narrow)
    cuts = torch.tensor([[0, 0], [1, 2], [4, int(out.length[4]) - 1], [5, 1]])
    found = branch(narrow, PROBLEM, IDS, out, cuts, 4, Sampling(), generator(1, "branches"))
    rows = found.rollouts
    assert rows.group.tolist() == [k for k in range(4) for _ in range(4)]
    assert rows.prompt_id.tolist() == [3] * 8 + [8] * 8
    texts = narrow.decode(rows.actions, rows.length)
    for i, text in enumerate(texts):
        row, position = cuts[i // 4].tolist()
        prefix = torch.cat([out.prefixes[row // 3], out.actions[row, :position]])
        assert torch.equal(rows.prompt[i, : rows.prompt_length[i]], prefix)
        want = 100 * IDS[row // 3] + sevens(narrow, out, row, position) + text.count("7")
        assert float(rows.scores["reward"][i]) == want
    torch.testing.assert_close(found.value, rows.scores["reward"].view(4, 4).mean(1))
    logp = narrow.evaluate(rows).logp
    assert logp is not None
    torch.testing.assert_close(rows.behaviour_logp * rows.mask, logp, atol=2e-6, rtol=1e-5)


def test_no_response_grows_beyond_its_limit(narrow: LanguagePolicy) -> None:
    out = sampled(narrow)
    cuts = torch.tensor([[0, 0], [int(out.length.argmax()), int(out.length.max()) - 1]])
    found = branch(narrow, PROBLEM, IDS, out, cuts, 32, Sampling(), generator(1, "branches"))
    room = (16 - cuts[:, 1]).repeat_interleave(32)
    assert bool((found.rollouts.length <= room).all()) and int(found.rollouts.length[:32].max()) == 16
    ended = found.rollouts.terminated.any(1) | found.rollouts.truncated.any(1)
    assert bool(ended.all()) and bool(found.rollouts.truncated[32:].any())
    assert found.cost["cost/tokens"] >= float(found.rollouts.length.sum())


def test_inserted_tokens_stand_behind_the_cut_and_are_not_chosen(narrow: LanguagePolicy) -> None:
    out, insert = sampled(narrow), [*narrow.encode([";7="]), *narrow.encode(["=7"])]
    cuts = torch.tensor([[2, 1], [2, int(out.length[2])]])
    found = branch(narrow, PROBLEM, IDS, out, cuts, 2, Sampling(), generator(1, "b"), insert=insert, max_new_tokens=3)
    rows = found.rollouts
    assert int(rows.length.max()) <= 3
    for i in range(4):
        prefix = rows.prompt[i, : rows.prompt_length[i]]
        assert torch.equal(prefix[-len(insert[i // 2]) :], insert[i // 2])
        own = sevens(narrow, out, 2, int(cuts[i // 2, 1])) + narrow.decode(rows.actions, rows.length)[i].count("7")
        assert float(rows.scores["reward"][i]) == 300 + own + 1


def test_a_repeated_cut_is_sampled_as_often_as_it_stands_there(narrow: LanguagePolicy) -> None:
    out = sampled(narrow)
    cuts = torch.tensor([[0, 1], [0, 1], [0, 1], [1, 0]])
    found = branch(narrow, PROBLEM, IDS, out, cuts, 5, Sampling(), generator(1, "branches"))
    assert len(found.rollouts) == 20
    assert len({tuple(row) for row in found.rollouts.actions[:15].tolist()}) > 5  # not five that are copied


def test_kept_keys_change_the_cost_and_nothing_else(narrow: LanguagePolicy) -> None:
    cuts = torch.tensor([[0, 1], [3, 0], [4, 1]])
    kept, anew = (
        branch(narrow, PROBLEM, IDS, sampled(narrow, keep=keep), cuts, 2, Sampling(), generator(1, "branches"))
        for keep in (True, False)
    )
    assert torch.equal(kept.rollouts.actions, anew.rollouts.actions)
    assert kept.cost["cost/tokens"] == anew.cost["cost/tokens"]
    assert kept.cost["cost/forward_tokens"] < anew.cost["cost/forward_tokens"]


def test_identical_prefixes_are_found_once(narrow: LanguagePolicy) -> None:
    out = sampled(narrow)
    out.actions[1, :2], out.actions[0, :2] = out.actions[0, :2], out.actions[0, :2].clone()
    out.actions[3, :2] = out.actions[0, :2]  # the same tokens, but behind another prompt
    cuts = torch.tensor([[0, 2], [1, 2], [0, 0], [2, 0], [3, 2], [0, 1]])
    first, index = distinct(out, cuts)
    assert first.tolist() == [0, 2, 4, 5] and index.tolist() == [0, 0, 1, 1, 2, 3]


def test_values_are_shared_and_unbiased(narrow: LanguagePolicy) -> None:
    out = sampled(narrow)
    cuts = torch.tensor([[0, 0], [1, 0], [2, 0], [3, 0]])
    value, cost = monte_carlo_values(narrow, PROBLEM, IDS, out, cuts, 2000, Sampling(), generator(1, "values"))
    assert float(value[0]) == float(value[1]) == float(value[2])
    fresh = respond(narrow, PROBLEM, IDS, 2000, Sampling(), generator(2, "fresh"))
    texts = narrow.decode(fresh.actions, fresh.length)
    counts = torch.tensor([float(text.count("7")) for text in texts]).view(2, 2000)
    error = (2 * counts.var(1) / 2000).sqrt()
    assert bool(((value[[0, 3]] - torch.tensor([300.0, 800.0]) - counts.mean(1)).abs() < 4 * error).all())
    assert cost["cost/tokens"] < 2 * float(counts.numel()) * 16


def test_no_cuts_cost_nothing_and_bad_ones_are_refused(narrow: LanguagePolicy) -> None:
    out, rng = sampled(narrow), generator(1, "values")
    value, cost = monte_carlo_values(
        narrow, PROBLEM, IDS, out, torch.zeros(0, 2, dtype=torch.int64), 2, Sampling(), rng
    )
    assert len(value) == 0 and not cost
    for cut in ([0, -1], [0, int(out.length[0]) + 1]):
        with pytest.raises(ValueError, match="a cut lies from 0 to its response's length"):
            branch(narrow, PROBLEM, IDS, out, torch.tensor([cut]), 2, Sampling(), rng)
