"""How a policy meets a problem in evaluation: the ``act`` that ``Problem.evaluate`` is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from policyopt.models.language import LanguagePolicy, Sampling
from policyopt.types import Prompt

EVALUATION_ROWS = 512  # responses sampled side by side


def language_act(
    policy: LanguagePolicy, problem: Any, rng: torch.Generator
) -> Callable[[list[Prompt], int, bool], list[list[str]]]:
    """``act(prompts, samples, greedy)`` → for each prompt the texts of its responses, at the policy's temperature."""

    def act(prompts: list[Prompt], samples: int, greedy: bool) -> list[list[str]]:
        sampling = Sampling(temperature=0.0 if greedy else policy.temperature)
        texts: list[list[str]] = []
        stride = max(1, EVALUATION_ROWS // samples)
        for start in range(0, len(prompts), stride):
            encoded = policy.encode(prompts[start : start + stride])
            sampled = policy.extend(
                encoded, samples, sampling, rng, max_new_tokens=problem.max_new_tokens, stop=problem.stop
            )
            flat = policy.decode(sampled.actions, sampled.length)
            texts += [flat[i : i + samples] for i in range(0, len(flat), samples)]
        return texts

    return act


def held_out(policy: LanguagePolicy, problem: Any, rng: torch.Generator, samples: int, greedy: bool) -> torch.Tensor:
    """The problem's metric for ``samples`` responses to each of its first held-out prompts [prompts, samples]."""
    ids = range(min(problem.evaluation_size, problem.size("test")))
    texts = language_act(policy, problem, rng)(problem.prompts(ids, "test"), samples, greedy)
    repeated = [i for i in ids for _ in range(samples)]
    flat = [text for row in texts for text in row]
    metric: torch.Tensor = problem.score(repeated, flat, "test")[problem.metric]
    return metric.view(len(ids), samples)


def act_for(policy: Any, problem: Any, rng: torch.Generator) -> Any:
    """What ``problem.evaluate`` calls: texts for language policies, the policy's own ``act`` for the others."""
    return language_act(policy, problem, rng) if isinstance(policy, LanguagePolicy) else getattr(policy, "act", policy)
