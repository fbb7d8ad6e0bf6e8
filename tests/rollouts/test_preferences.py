"""Ranked responses as rows: what is given, cut, refused, kept; and that packing them changes no number."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from policyopt import registry
from policyopt.learners.annotators import KeptReference, Reference
from policyopt.learners.update import minibatches
from policyopt.models.language import LanguagePolicy
from policyopt.problems.language.arithmetic import Arithmetic
from policyopt.problems.language.bigrams import Bigrams
from policyopt.rollouts.kept import Kept, columns_of, from_columns, joined
from policyopt.rollouts.language import Groups
from policyopt.rollouts.preferences import BestAndWorst, LabelledPairs, Rankings, check_ranking, ranked_responses
from policyopt.types import Clock, generator


@dataclass(frozen=True, kw_only=True)
class Fixed(Arithmetic):
    """Arithmetic with given rankings."""

    given: tuple = ()

    def rankings(self, ids, split="train"):
        return [self.given for _ in ids]


def test_rows_end_with_the_end_token_and_carry_their_score(policy: LanguagePolicy) -> None:
    batch, cut = ranked_responses(policy, Arithmetic(), [0, 5])
    assert len(batch) == 4 and batch.group.tolist() == [0, 0, 1, 1] and batch.prompt_id.tolist() == [0, 0, 5, 5]
    assert batch.scores["reward"].tolist() == [1.0, 0.0, 1.0, 0.0] and cut["response/truncated"] == 0.0
    ends = batch.actions[torch.arange(4), batch.length - 1]
    assert (ends == policy.end_tokens[0]).all() and (batch.mask.sum(1) == batch.length).all()


def test_long_responses_are_cut_and_counted(policy: LanguagePolicy) -> None:
    batch, cut = ranked_responses(policy, Arithmetic(), [0, 5], limit=3)
    assert batch.length.tolist() == [3] * 4 and cut["response/truncated"] == 1.0


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        ((("a",), (1.0,)), "1 responses and 1 scores"),
        ((("a", "b"), (1.0,)), "2 responses and 1 scores"),
        ((("a", ""), (1.0, 0.0)), "has an empty response"),
        ((("a", "b"), (1.0, float("nan"))), "must be finite"),
        ((("a", "a"), (1.0, 0.0)), "ranks a response above itself"),
    ],
)
def test_what_cannot_be_learned_from_is_named(policy: LanguagePolicy, ranking, message: str) -> None:
    with pytest.raises(ValueError, match=f"arithmetic: the list of train prompt 3 .*{message}|{message}"):
        ranked_responses(policy, Fixed(given=ranking), [3])
    with pytest.raises(ValueError, match=message):
        check_ranking(ranking, "here")


def test_packed_log_probabilities_are_those_of_single_rows(policy: LanguagePolicy) -> None:
    batch, _ = ranked_responses(policy, Arithmetic(), [0, 1, 2])
    together = policy.evaluate(batch).logp
    alone = torch.cat([policy.evaluate(batch[torch.tensor([i])]).logp for i in range(len(batch))])
    torch.testing.assert_close(together, alone, atol=3e-6, rtol=0)


def test_pieces_never_divide_a_group(policy: LanguagePolicy) -> None:
    batch, _ = ranked_responses(policy, Arithmetic(), range(6))
    pieces = policy.micro_batches(batch, 40, whole=True)
    assert len(pieces) > 1 and sorted(torch.cat(pieces).tolist()) == list(range(12))
    owners = [set(batch.group[rows].tolist()) for rows in pieces]
    assert not any(a & b for i, a in enumerate(owners) for b in owners[:i])
    parts = list(minibatches({"rollouts": batch}, 4, generator(0, "x"), whole=True))
    assert [len(part["rollouts"]) for part in parts] == [4, 4, 2, 2]
    assert all((part["rollouts"].group.unique(return_counts=True)[1] == 2).all() for part in parts)
    with pytest.raises(ValueError, match="as many groups"):
        list(minibatches({"rollouts": batch}, 7, generator(0, "x"), whole=True))


def test_the_reference_is_computed_once(policy: LanguagePolicy) -> None:
    part, memory = KeptReference(), KeptReference().memory()
    model = part.build(policy, 0)
    first, _ = ranked_responses(policy, Arithmetic(), [0, 1])
    want = Reference()(first, policy, model, 4096).ref_logp
    torch.testing.assert_close(part(first, policy, model, 4096, memory).ref_logp, want)
    again, _ = ranked_responses(policy, Arithmetic(), [1, 0, 1])  # another order, one prompt twice, other padding
    got = part(again, policy, None, 4096, memory).ref_logp  # no model: nothing is computed anew
    torch.testing.assert_close(got, Reference()(again, policy, model, 4096).ref_logp, atol=3e-6, rtol=0)
    fresh = part.memory()
    fresh.load_state_dict(memory.state_dict())
    torch.testing.assert_close(part(again, policy, None, 4096, fresh).ref_logp, got)


def bigrams() -> tuple[Bigrams, LanguagePolicy]:
    problem = Bigrams(train_size=32, test_size=8, letters=6, length=5)
    return problem, registry.policy("fresh:layers=1,width=16,heads=2", problem, seed=0, device="cpu")


def test_sampled_pairs_are_labelled_by_the_problems_probability() -> None:
    problem, policy = bigrams()
    batch = LabelledPairs(prompts=200, samples=2)(policy, problem, Clock(seed=0)).batches["rollouts"]
    texts = policy.decode(batch.actions, batch.length)
    chance = problem.preferred(batch.prompt_id[::2].tolist(), texts[::2], texts[1::2])
    won = batch.scores["reward"][::2]
    assert float((won - chance).mean().abs()) < 0.1 and (won + batch.scores["reward"][1::2] == 1).all()
    with pytest.raises(ValueError, match="must be even"):
        LabelledPairs(samples=3)


def test_best_and_worst_of_a_group() -> None:
    problem, policy = bigrams()
    batch = BestAndWorst(prompts=6, samples=8)(policy, problem, Clock(seed=0)).batches["rollouts"]
    whole = Groups(prompts=6, samples=8)(policy, problem, Clock(seed=0)).batches["rollouts"].scores["reward"].view(6, 8)
    torch.testing.assert_close(batch.scores["reward"].view(6, 2), torch.stack([whole.amax(1), whole.amin(1)], 1))


def test_held_out_lists_have_their_own_prompts() -> None:
    problem, policy = bigrams()
    batch = Rankings(held_out_prompts=5).held_out(policy, problem)
    assert len(batch) == 10 and int(batch.prompt_id.max()) < 0
    assert Rankings(held_out_prompts=0).held_out(policy, problem) is None


def test_kept_rollouts_are_served_group_by_group() -> None:
    problem, policy = bigrams()
    clock = Clock(seed=0)
    first = Groups(prompts=3, samples=2)(policy, problem, clock).batches["rollouts"]
    clock.step = 1
    second = Groups(prompts=3, samples=2)(policy, problem, clock).batches["rollouts"]
    data = joined([first, second])
    assert len(data) == 12 and data.group.unique().tolist() == list(range(6))
    saved = from_columns(columns_of(data))
    torch.testing.assert_close(saved.actions, data.actions)
    served = [Kept(data=data, groups=2)(policy, problem, Clock(seed=0, step=i)).batches["rollouts"] for i in range(3)]
    assert sorted(int(g) for batch in served for g in batch.group.unique()) == list(range(6))
    for batch in served:
        torch.testing.assert_close(policy.evaluate(batch).logp, batch.behaviour_logp * batch.mask, atol=3e-6, rtol=0)
    with pytest.raises(ValueError, match="no kept rollouts"):
        Kept()(policy, problem, clock)
