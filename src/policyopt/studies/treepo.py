"""TreePO's claim: trees decode fewer tokens for as many responses, and learning does not suffer.

Running sums of 12 digits, written out (24 tokens), from the shipped policy. All arms have the same objective, learning rate and
number of responses (8 prompts × 16) in an update; they differ in how responses are sampled and in their advantages. Each runs
until the same number of DECODED tokens is spent, a shared segment counted once, so that trees get more updates; ``area, equal
updates`` is the area under the accuracy curve over the updates that independent sampling gets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import mean
from typing import Any

from policyopt.credit.groups import GroupNormalized
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.update import Adam
from policyopt.methods import treepo
from policyopt.methods.treepo import Trees
from policyopt.problems.language.arithmetic import Arithmetic
from policyopt.rollouts.language import Groups
from policyopt.rollouts.tree import Budgeted, Fallback
from policyopt.studies.arms import Trained
from policyopt.studies.claim import Claim, lower_bound, paired_difference, upper_bound
from policyopt.training.loop import Run
from policyopt.types import Budget, Clock, Collector

PROMPTS, WIDTH, SEGMENT = 8, 16, 4
UPDATES = 45
TOKENS = UPDATES * PROMPTS * WIDTH * 24
RATE = 1e-3


def problem() -> Arithmetic:
    return Arithmetic(operations="+", terms=12, noise=0.12)


def _arm(collector: Collector, method: OnPolicy) -> OnPolicy:
    return replace(method, collector=collector, optimizer=Adam(learning_rate=RATE))


def _tree(fallback: Fallback | None) -> Trees:
    return Trees(prompts=PROMPTS, branching=Budgeted(width=WIDTH, segment=SEGMENT, fallback=fallback))


def grpo() -> OnPolicy:
    """Independent samples, GRPO's advantages, TreePO's objective."""
    return _arm(Groups(prompts=PROMPTS, samples=WIDTH), replace(treepo.method(), credit=(GroupNormalized(),)))


def trees() -> OnPolicy:
    return _arm(_tree(Fallback()), treepo.method())


def trees_grpo() -> OnPolicy:
    return _arm(_tree(Fallback()), replace(treepo.method(), credit=(GroupNormalized(),)))


def narrow() -> OnPolicy:
    return _arm(_tree(None), treepo.method())


def area_until(curve: tuple[list[float], list[float]], end: float) -> float:
    """Mean height of a curve, linear between its points, from 0 to ``end`` or to its last point."""
    x, y = curve
    end = min(end, x[-1])
    area = 0.0
    for a, b, u, v in zip(x, x[1:], y, y[1:], strict=False):
        right = min(b, end)
        if right > a:
            height = u + (v - u) * (right - a) / (b - a)
            area += (right - a) * (u + height) / 2
    return area / end


def costs(result: Run, task: Any, seed: int) -> Mapping[str, float]:
    """What responses cost against as many independent ones of their lengths, and how many of a group differ at the end."""
    rows = [row for row in result.rows if "cost/tokens" in row]
    learner: Any = result.learner
    batch = learner.method.collector(learner.policy, task, Clock(seed=seed, step=10_000)).batches["rollouts"]
    texts = [tuple(row[:n]) for row, n in zip(batch.actions.tolist(), batch.length.tolist(), strict=True)]
    return {
        "decoded share": mean(row["cost/tokens"] / (_responses(row) * row["response/length"]) for row in rows),
        "forward share": mean(
            row["cost/forward_tokens"] / (_responses(row) * (row["response/length"] - 1) + PROMPTS * 24) for row in rows
        ),
        "distinct": len(set(zip(batch.group.tolist(), texts, strict=True))) / len(batch),
        "responses": mean(_responses(row) for row in rows) / PROMPTS,
        "updates": float(len(rows)),
        "area, equal updates": area_until(result.curve("eval/accuracy"), UPDATES),
    }


def _responses(row: Mapping[str, float]) -> float:
    return PROMPTS * row.get("tree/responses", WIDTH)


def _trained(method: Callable[[], OnPolicy]) -> Trained:
    return Trained(method=method, budget=Budget(tokens=TOKENS), problem=problem, evaluations=15, measure=costs)


claim = Claim(
    slug="treepo",
    paper="2508.17445",
    text="Trees decode at most 85% of the tokens of independent responses, and learning from them is better at equal decoded "
    "tokens and not worse at equal updates.",
    arms={
        "treepo": _trained(trees),
        "grpo": _trained(grpo),
        "trees, grpo's advantage": _trained(trees_grpo),
        "treepo, no fallback": _trained(narrow),
    },
    gates=(
        upper_bound("decoded share", "treepo", below=0.85),
        paired_difference("area", "treepo", "grpo", above=0.0),
        paired_difference("area, equal updates", "treepo", "grpo", above=-0.03),
        paired_difference("area", "treepo", "trees, grpo's advantage", above=0.0, required=False),
        paired_difference("area", "trees, grpo's advantage", "grpo", above=0.0, required=False),
        paired_difference("area", "treepo", "treepo, no fallback", above=0.0, required=False),
        paired_difference("distinct", "treepo", "grpo", above=-0.1, required=False),
        lower_bound("responses", "treepo", above=15.99, required=False),
    ),
    seeds=range(5),
    budget=f"{TOKENS} decoded tokens an arm and seed, shared segments counted once: {UPDATES} updates of independent samples",
    tuning="one setting for all arms, fixed beforehand: learning rate 1e-3, GRPO's in the study of BNPO; segments of 4 tokens",
    axis="decoded tokens",
)
