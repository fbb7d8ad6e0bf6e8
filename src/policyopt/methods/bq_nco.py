"""BQ-NCO: a constructive policy that is shown the remaining problem alone, trained by imitation (arXiv 2301.03313).

Partial solutions with the same remaining problem (tail) are one state of the quotient decision process. Its optimal
value is that of the direct process, V*([x]) = V*(x), and the tail is again an instance, only smaller: a policy trained
at one size serves other sizes. Training: cut a reference solution at a random step, show the tail, and lower
    loss = - sum_a target(a) log pi(a | tail),   target = the reference's next step, or a set's remaining items alike.

Chosen where the paper is silent: the first step (origin = destination) is imitated too, since decoding takes it; tours
are rotated, reversed and reflected at random; a step that is forced is not imitated. The learned tokens of origin and
destination are two feature columns here, which is the same sum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from policyopt.learners.imitation import Imitation
from policyopt.learners.update import Adam, Schedule
from policyopt.models.pointer import Observation, Pointer, PointerPolicy, View
from policyopt.types import Clock

FAMILY = "decision"
VARIANTS = ("whole",)


@dataclass(frozen=True, kw_only=True)
class Quotient(View):
    """Shows the remaining problem and nothing else of a partial solution."""

    def __call__(self, state: Any) -> Observation:
        seen: Observation = state.tail()
        return seen


@dataclass(frozen=True, kw_only=True)
class Whole(View):
    """The baseline without a quotient: every node of the instance, marked as visited, current, start."""

    def __call__(self, state: Any) -> Observation:
        if not hasattr(state, "whole"):
            raise ValueError(f"{type(state).__name__} has only its tail to show: use the view Quotient()")
        seen: Observation = state.whole()
        return seen


def nearest(seen: Observation, count: int) -> Observation:
    """Keeps the current node, the ``count`` nearest candidates that have a legal choice, and the destination.

    Raises ValueError where the candidates have no distances (a knapsack's items).
    """
    if "distance" not in seen:
        raise ValueError("these candidates have no distances to be near by: decode without a restriction")
    rows, candidates = seen["distance"].shape
    legal = seen["legal"].view(rows, candidates, -1)
    far = seen["distance"].masked_fill(~legal.any(-1), torch.inf)[:, 1:-1]
    near = far.topk(min(count, candidates - 2), largest=False).indices.sort(1).values + 1
    kept = torch.cat([torch.zeros_like(near[:, :1]), near, torch.full_like(near[:, :1], candidates - 1)], 1)
    row = torch.arange(rows)[:, None]
    choice = seen["choice"].view(legal.shape)
    return {
        "features": seen["features"][row, kept],
        "legal": legal[row, kept].flatten(1),
        "choice": choice[row, kept].flatten(1),
        "distance": seen["distance"][row, kept],
    }


@dataclass(frozen=True, kw_only=True)
class Nearest(View):
    """A view restricted to the ``count`` candidates nearest to the current node, for decoding large instances."""

    view: View = Quotient()
    count: int = 250

    def __call__(self, state: Any) -> Observation:
        return nearest(self.view(state), self.count)


@torch.no_grad()
def beam_search(policy: PointerPolicy, start: Any, width: int) -> tuple[Any, Tensor]:
    """Keeps the ``width`` likeliest partial solutions of each instance → the best complete ones by return, returns [N].

    Greedy decoding at width 1.
    """
    count = len(start)
    beams, returns, score = start, torch.zeros(count), torch.zeros(count, 1)
    while not bool(beams.done.all()):
        seen = policy.view(beams)
        logp = policy.log_probabilities(seen).cpu()
        choices = logp.shape[1]
        ahead = (score[..., None] + logp.view(count, -1, choices)).flatten(1)
        score, index = ahead.topk(min(width, ahead.shape[1]))
        index = torch.where(score == -torch.inf, index[:, :1], index)
        row = (torch.arange(count)[:, None] * (ahead.shape[1] // choices) + index // choices).flatten()
        action = seen["choice"][row, index.flatten() % choices]
        beams, reward = beams[row].step(action)
        returns = returns[row] + reward
    best = returns.view(count, -1).argmax(1) + torch.arange(count) * (len(returns) // count)
    return beams[best], returns[best]


@dataclass(frozen=True, kw_only=True)
class StepDecay(Schedule):
    """The learning rate times ``factor`` every ``every`` steps."""

    factor: float = 0.99
    every: int = 50_000

    def __call__(self, clock: Clock) -> float:
        return float(self.factor ** (clock.step // self.every))


def method() -> Imitation:
    """The paper's: 9 layers of width 192; 500 epochs over a million instances in batches of 1024, decay every 50."""
    epoch = 1_000_000 // 1024
    return Imitation(
        policy=Pointer(view=Quotient(), dim=192, layers=9, heads=12, feedforward=512),
        batch=1024,
        optimizer=Adam(learning_rate=7.5e-4, schedule=StepDecay(every=50 * epoch), gradient_clip=None),
        updates=500 * epoch,
    )


def whole() -> Imitation:
    """The baseline: the same network and training, shown the whole instance."""
    made = method()
    return replace(made, policy=replace(made.policy, view=Whole()))
