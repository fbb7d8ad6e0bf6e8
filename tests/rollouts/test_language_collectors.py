"""Collectors for language: which prompts, in what order, and rows whose columns belong together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from policyopt.models.language import LanguagePolicy, Sampling
from policyopt.problems.language.arithmetic import Arithmetic
from policyopt.rollouts.language import Groups, prompt_ids, scored_rollouts
from policyopt.rollouts.written import Demonstrations, demonstrations
from policyopt.types import Clock, Rollouts, Scores, generator


@dataclass(frozen=True, kw_only=True)
class Tagged(Arithmetic):
    """Scores that tell which prompt and which response they belong to."""

    terms: int | tuple[int, int] = (2, 5)
    train_size: int = 10

    def components(self, ids: Any, responses: Any, split: str = "train") -> Scores:
        return {
            "accuracy": torch.tensor([float(i) for i in ids]),
            "text": torch.tensor([float(sum(map(ord, text))) for text in responses]),
        }


PROBLEM = Tagged(max_new_tokens=30)


def collect(
    policy: LanguagePolicy, problem: Any = PROBLEM, step: int = 0, **fields: Any
) -> tuple[Rollouts, dict[str, Any]]:
    collected = Groups(**{"prompts": 4, "samples": 3, **fields})(policy, problem, Clock(seed=1, step=step))
    return collected.batches["rollouts"], collected.metrics


def stopping(policy: LanguagePolicy) -> LanguagePolicy:
    """The policy with an end token likely enough that responses end at different lengths."""
    with torch.no_grad():
        policy.head.weight[policy.end_tokens] *= 0.0
        policy.head.weight *= 0.3
    return policy


@pytest.mark.parametrize("count", [1, 3, 4, 10, 25])
def test_every_prompt_once_an_epoch_in_a_new_order_each_time(count: int) -> None:
    drawn = [i for step in range(-(-30 // count)) for i in prompt_ids(PROBLEM, count, Clock(seed=1, step=step))][:30]
    epochs = [drawn[:10], drawn[10:20], drawn[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    whole = [i for step in range(30) for i in prompt_ids(PROBLEM, 1, Clock(seed=1, step=step))]
    assert drawn == whole, "how many at a time makes no difference to the order"


def test_the_order_is_a_function_of_seed_and_step() -> None:
    one, again, other = (prompt_ids(PROBLEM, 10, Clock(seed=seed, step=2)) for seed in (1, 1, 2))
    assert one == again != other


def test_a_problem_without_prompts_is_refused() -> None:
    class Empty:
        name = "empty"

        def size(self, split: str) -> int:
            return 0

    with pytest.raises(ValueError, match="empty has no training prompts"):
        prompt_ids(Empty(), 1, Clock())


def test_a_collection_repeats_and_the_next_step_is_another(policy: LanguagePolicy) -> None:
    (one, _), (again, _), (later, _) = (collect(policy, step=step) for step in (0, 0, 1))
    assert torch.equal(one.actions, again.actions)
    assert torch.equal(one.behaviour_logp, again.behaviour_logp)
    assert not torch.equal(one.actions[:, :3], later.actions[:, :3])


def test_rows_groups_prompts_and_scores_belong_together(policy: LanguagePolicy) -> None:
    batch, metrics = collect(stopping(policy))
    assert batch.batch_size == (12,)
    ids = prompt_ids(PROBLEM, 4, Clock(seed=1))
    assert batch.prompt_id.tolist() == [i for i in ids for _ in range(3)]
    assert batch.group.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    for row, text in zip(batch, policy.decode(batch.actions, batch.length), strict=True):
        (prompt,) = PROBLEM.prompts([int(row.prompt_id)])
        assert policy.decode(row.prompt[None], row.prompt_length[None]) == [prompt]
        assert float(row.scores["accuracy"]) == float(row.scores["reward"]) == int(row.prompt_id)
        assert float(row.scores["text"]) == sum(map(ord, text))
    assert metrics["reward/mean"] == pytest.approx(sum(ids) / 4)
    assert metrics["reward/text"] == pytest.approx(float(batch.scores["text"].mean()))


def test_masks_ends_and_costs(policy: LanguagePolicy) -> None:
    batch, metrics = collect(stopping(policy), replace(PROBLEM, max_new_tokens=40), samples=12)
    end, step = policy.end_tokens, torch.arange(batch.actions.shape[1])
    assert torch.equal(batch.mask, step < batch.length[:, None])
    ended = torch.isin(batch.actions.gather(1, batch.length[:, None] - 1), end)[:, 0]
    assert 0 < int(ended.sum()) < 48, "both ends must occur for this to test anything"
    last = step == batch.length[:, None] - 1
    assert torch.equal(batch.terminated, last & ended[:, None])
    assert torch.equal(batch.truncated, last & ~ended[:, None])
    assert set(batch.length[~ended].tolist()) == {40}
    assert int(torch.isin(batch.actions, end)[batch.mask].sum()) == int(ended.sum()), "an end token ends its response"
    assert metrics["cost/tokens"] == int(batch.length.sum())
    assert metrics["response/length"] == pytest.approx(float(batch.length.float().mean()))
    assert metrics["response/truncated"] == pytest.approx(float((~ended).float().mean()))
    prompts = batch.prompt_length[::12].sum()
    assert metrics["cost/forward_tokens"] == int(prompts) + int((batch.length - 1).sum())
    mean = float((batch.entropy * batch.mask).sum() / batch.mask.sum())
    assert metrics["policy/entropy"] == pytest.approx(mean)
    assert not batch.behaviour_logp[~batch.mask].any()


def test_the_sampling_limit_goes_before_the_problems(policy: LanguagePolicy) -> None:
    batch, _ = collect(policy, sampling=Sampling(max_new_tokens=5))
    assert batch.actions.shape[1] == int(batch.length.max()) == 5


def test_a_stop_text_ends_a_response_and_is_no_truncation(policy: LanguagePolicy) -> None:
    batch, _ = collect(policy, replace(PROBLEM, stop=tuple("0123456789"), max_new_tokens=30))
    texts = policy.decode(batch.actions, batch.length)
    stopped = torch.tensor([text[-1:].isdigit() for text in texts])
    assert stopped.any()
    assert not any(char.isdigit() for text in texts for char in text[:-1])
    assert torch.equal(batch.terminated.any(1) | ~stopped, torch.ones(12).bool())


def test_scores_are_of_the_right_rows_when_samples_differ_in_number(policy: LanguagePolicy) -> None:
    sampled = policy.extend(policy.encode(PROBLEM.prompts([5, 2])), 2, Sampling(), generator(0, "s"), max_new_tokens=4)
    batch = scored_rollouts(policy, PROBLEM, [5, 2], sampled)
    assert batch.scores["accuracy"].tolist() == [5.0, 5.0, 2.0, 2.0]


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="prompts and samples must be positive, got 0 and 8"):
        Groups(prompts=0)


def test_demonstrations_end_with_the_end_token(policy: LanguagePolicy) -> None:
    problem = Arithmetic(terms=(2, 5), train_size=6)
    collected = Demonstrations(prompts=6)(policy, problem, Clock(seed=1))
    batch = collected.batches["rollouts"]
    ids = prompt_ids(problem, 6, Clock(seed=1))
    assert batch.prompt_id.tolist() == ids
    for row, text in zip(batch, problem.demonstrations(ids), strict=True):
        own = row.actions[: row.length]
        assert int(own[-1]) == policy.tokenizer.eos_token_id
        assert policy.decode(own[None], row.length[None]) == [text]
        assert int(row.length) == len(text) + 1
        assert row.mask.tolist() == [step < int(row.length) for step in range(batch.actions.shape[1])]
    assert float(collected.metrics["cost/tokens"]) == int(batch.length.sum())
    prompts = [policy.decode(row.prompt[None], row.prompt_length[None])[0] for row in batch]
    assert prompts == problem.prompts(ids)


def test_demonstrations_are_cut_at_the_end_of_the_context(policy: LanguagePolicy) -> None:
    problem = Arithmetic(terms=5)
    (prompt,) = policy.encode(problem.prompts([0]))
    policy.context = len(prompt) + 3
    batch = demonstrations(policy, problem, [0])
    assert batch.length.tolist() == [3]
    assert policy.decode(batch.actions, batch.length) == [problem.demonstrations([0])[0][:3]]


def test_scores_follow_their_rows(policy: LanguagePolicy) -> None:
    batch = Groups(prompts=3, samples=2)(policy, Arithmetic(terms=2), Clock(seed=0)).batches["rollouts"]
    marked = batch.replace(scores={**dict(batch.scores.items()), "place": torch.arange(6)})
    assert batch[torch.tensor([4, 1])].scores["reward"].shape == (2,)
    assert marked[torch.tensor([4, 1])].scores["place"].tolist() == [4, 1]
