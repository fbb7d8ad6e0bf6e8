"""Collectors of ranked responses: from data, and sampled from the policy and ranked by the problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor

from policyopt.models.language import LanguagePolicy
from policyopt.rollouts.language import Groups, prompt_ids
from policyopt.rollouts.written import written_rows
from policyopt.types import Clock, Collected, Collector, Ranking, Rollouts


def ranked_responses(
    policy: LanguagePolicy,
    problem: Any,
    ids: Sequence[int],
    split: str = "train",
    limit: int | None = None,
    prompt_limit: int | None = None,
) -> tuple[Rollouts, dict[str, float]]:
    """The problem's rankings of the prompts ``ids`` as rows [Σ K], a group a list, and how much was cut.

    Responses get the end token behind them and keep their first ``limit`` tokens (the problem's ``max_new_tokens`` where
    None), prompts their last ``prompt_limit`` (what the context leaves beside a response, half of it at least, where None).
    Reported: the shares of responses that were cut, and of prompts that are as long as their limit. Raises ValueError for a
    list of one, an empty response, a score that is not finite, and one response that is ranked twice with different scores.
    """
    rankings = problem.rankings(ids, split)
    for prompt, ranking in zip(ids, rankings, strict=True):
        check_ranking(ranking, f"{problem.name}: the list of {split} prompt {prompt}")
    owner = [i for i, (responses, _) in enumerate(rankings) for _ in responses]
    texts = [text for responses, _ in rankings for text in responses]
    prompts = problem.prompts(ids, split)
    limit = limit or problem.max_new_tokens
    prompt_limit = prompt_limit or policy.context - min(limit, policy.context // 2)
    batch, cut = written_rows(policy, prompts, owner, texts, limit, prompt_limit)
    reward = torch.tensor([score for _, scores in rankings for score in scores], device=policy.device)
    made = batch.replace(
        group=torch.tensor(owner, device=policy.device),
        prompt_id=torch.tensor([ids[i] for i in owner], device=policy.device),
        scores=TensorDict({"reward": reward}, [len(owner)]),
    )
    at_limit = float((batch.prompt_length >= prompt_limit).float().mean())
    return made, {"response/truncated": cut, "prompt/at_limit": at_limit}


def check_ranking(ranking: Ranking, where: str) -> None:
    """Raises ValueError where a list can't be learned from."""
    responses, scores = ranking
    if len(responses) < 2 or len(responses) != len(scores):
        raise ValueError(f"{where} has {len(responses)} responses and {len(scores)} scores; expected 2 or more of each")
    if any(not text for text in responses):
        raise ValueError(f"{where} has an empty response: drop that row")
    if not torch.tensor(list(scores)).isfinite().all():
        raise ValueError(f"{where} has the scores {list(scores)}: all of them must be finite")
    if len(set(scores)) > 1 and len(set(responses)) == 1:
        raise ValueError(f"{where} ranks a response above itself ({responses[0][:60]!r}): drop that row")


@dataclass(frozen=True, kw_only=True)
class Rankings(Collector):
    """The problem's ranked responses to ``prompts`` training prompts a step.

    prompt_limit: prompts keep their last so many tokens; what the context leaves beside a response where None.
    held_out_prompts: of the held-out ones, on which accuracy and margin are measured at evaluations.
    """

    gives: ClassVar[tuple[str, ...]] = ("scores", "group", "prompt_id")
    prompts: int = 32
    prompt_limit: int | None = None
    held_out_prompts: int = 256

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.held_out_prompts < 0:
            raise ValueError(f"prompts must be positive, got {self.prompts} and {self.held_out_prompts} held-out ones")

    def __call__(self, policy: LanguagePolicy, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        ids = prompt_ids(problem, self.prompts, clock)
        batch, cut = ranked_responses(policy, problem, ids, prompt_limit=self.prompt_limit)
        metrics: dict[str, Tensor | float] = {
            "response/length": batch.length.float().mean(),
            "cost/tokens": batch.mask.sum(),
            **cut,
        }
        return Collected({"rollouts": batch}, metrics)

    def held_out(self, policy: LanguagePolicy, problem: Any) -> Rollouts | None:
        ids = range(min(self.held_out_prompts, problem.size("test")))
        if not len(ids):
            return None
        batch = ranked_responses(policy, problem, ids, "test", prompt_limit=self.prompt_limit)[0]
        return batch.replace(prompt_id=-1 - batch.prompt_id)  # apart from the training prompts


@dataclass(frozen=True, kw_only=True)
class LabelledPairs(Groups):
    """Pairs sampled from the policy, each labelled once: the first wins with the probability that the problem says.

    ``samples`` responses to a prompt are ``samples``/2 pairs, each a group of its own; the winner's score is 1, the loser's 0.
    """

    samples: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples % 2:
            raise ValueError(f"samples are paired, so their number must be even, got {self.samples}")

    def __call__(self, policy: LanguagePolicy, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        collected = super().__call__(policy, problem, clock)
        batch = collected.batches["rollouts"]
        texts = policy.decode(batch.actions, batch.length)
        first = problem.preferred(batch.prompt_id[::2].tolist(), texts[::2], texts[1::2])
        wins = torch.rand(len(first), generator=clock.generator("label")) < first
        won = torch.stack([wins, ~wins], 1).flatten().float().to(policy.device)
        pair = torch.arange(len(batch), device=policy.device) // 2
        scores = {**dict(batch.scores.items()), "reward": won}
        labelled = batch.replace(group=pair, scores=TensorDict(scores, [len(batch)]))
        return Collected({"rollouts": labelled}, collected.metrics)


@dataclass(frozen=True, kw_only=True)
class BestAndWorst(Groups):
    """The best and the worst of each prompt's ``samples`` responses, by their reward (ties: the first and the last)."""

    def __call__(self, policy: LanguagePolicy, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        collected = super().__call__(policy, problem, clock)
        batch = collected.batches["rollouts"]
        reward = batch.scores["reward"].view(-1, self.samples)
        order = reward.argsort(descending=True, stable=True)
        start = torch.arange(len(reward), device=policy.device)[:, None] * self.samples
        rows = (start + order[:, [0, -1]]).flatten()
        return Collected({"rollouts": batch[rows]}, collected.metrics)
