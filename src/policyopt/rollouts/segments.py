"""Continuations from the middle of responses: what a state is worth by Monte Carlo, and answers that are forced at a cut.

A cut point (row, position) is the state of a sampled response before its token ``position``: 0 is the prompt alone, the
response's length everything that was sampled. K cut points, N continuations of each; all sampling is one ``policy.extend``
behind the keys and values that the responses left (``respond(…, keep=True)``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from policyopt.models.engines import padded
from policyopt.models.language import Continuations, LanguagePolicy, Sampling
from policyopt.rollouts.language import scored_rollouts
from policyopt.types import Rollouts


@dataclass(frozen=True)
class Branches:
    """N continuations of each of K cut points.

    rollouts [K · N]: their prompt is the prefix (prompt, what was kept of the response, what was inserted), their actions
    are the continuation, their group is the cut point; they are scored as whole responses. ``cost`` counts every token that
    was sampled or went through the model.
    """

    rollouts: Rollouts
    samples: int
    cost: dict[str, float]

    @property
    def value(self) -> Tensor:
        """[K] mean reward of the continuations of each cut point: an unbiased estimate of its state's value."""
        reward: Tensor = self.rollouts.scores["reward"]
        return reward.view(-1, self.samples).mean(1)


def branch(
    policy: LanguagePolicy,
    problem: Any,
    ids: Sequence[int],
    sampled: Continuations,
    cuts: Tensor,
    samples: int,
    sampling: Sampling,
    rng: torch.Generator,
    *,
    insert: Sequence[Tensor] | None = None,
    max_new_tokens: int | None = None,
) -> Branches:
    """``samples`` continuations from each of the cut points ``cuts`` [K, 2] of ``sampled``, whose prompts are ``ids``.

    A cut point that stands there m times is continued m · ``samples`` times. ``insert`` are tokens to put behind each cut.
    ``max_new_tokens`` None: what a response may still have behind its cut; longer ones are cut off there.

    Raises ValueError without a cut point, and for one outside of its response.
    """
    rows, positions = cuts.unbind(1)
    own = sampled.length[rows]
    if len(cuts) == 0 or bool(((positions < 0) | (positions > own)).any()):
        raise ValueError(
            f"a cut lies from 0 to its response's length; got {len(cuts)} cuts at {positions.tolist()[:9]} of {own.tolist()[:9]}"
        )
    prefixes = sampled.cut(rows.tolist(), positions.tolist(), insert)
    asked = [len(sampled.prefixes[parent]) for parent in (rows // sampled.samples).tolist()]
    if max_new_tokens is None:
        written = torch.tensor([len(p) for p in prefixes.tokens]) - torch.tensor(asked)
        room = ((sampling.max_new_tokens or problem.max_new_tokens) - written).clamp(min=1).to(cuts.device)
    else:
        room = torch.full_like(positions, max_new_tokens)
    found = policy.extend(prefixes, samples, sampling, rng, max_new_tokens=int(room.max()), stop=problem.stop)
    cost = {"cost/tokens": float(found.sampled_tokens), "cost/forward_tokens": float(found.forward_tokens)}
    room = room.repeat_interleave(samples)
    found = replace(found, finished=found.finished & (found.length <= room), length=found.length.minimum(room))
    whole = padded([found.tokens(i)[asked[i // samples] :] for i in range(len(found.length))])
    own_ids = [ids[parent] for parent in (rows // sampled.samples).tolist()]
    return Branches(scored_rollouts(policy, problem, own_ids, found, policy.decode(*whole)), samples, cost)


def distinct(sampled: Continuations, cuts: Tensor) -> tuple[Tensor, Tensor]:
    """cuts [K, 2] → (index [U] of cut points, one for each distinct prefix, index [K] into them).

    Prefixes are the same where the prompt's place and every token that was kept are.
    """
    numbers: dict[tuple[int, ...], int] = {}
    first: list[int] = []
    index: list[int] = []
    actions = sampled.actions.tolist()
    for cut, (row, position) in enumerate(cuts.tolist()):
        key = (row // sampled.samples, *actions[row][:position])
        if key not in numbers:
            numbers[key] = len(first)
            first.append(cut)
        index.append(numbers[key])
    device = cuts.device
    return torch.tensor(first, dtype=torch.int64, device=device), torch.tensor(index, dtype=torch.int64, device=device)


def monte_carlo_values(
    policy: LanguagePolicy,
    problem: Any,
    ids: Sequence[int],
    sampled: Continuations,
    cuts: Tensor,
    samples: int,
    sampling: Sampling,
    rng: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """Mean reward of ``samples`` fresh continuations from each cut point → ([K], what they cost).

    Cut points with the same prefix are estimated once (VinePPO, arXiv 2410.01679; SPO, arXiv 2505.23564). No cut points
    give no values and cost nothing.
    """
    if len(cuts) == 0:
        return torch.zeros(0, device=cuts.device), {}
    first, index = distinct(sampled, cuts)
    branches = branch(policy, problem, ids, sampled, cuts[first], samples, sampling, rng)
    return branches.value[index], branches.cost
