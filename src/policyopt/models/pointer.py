"""Policies that score each candidate of a set of any size and choose by a masked softmax.

A view shows the policy a state as an observation: "features" [N, M, F] of M candidates, "legal" [N, A] and "choice"
[N, A], the action behind each choice. A scorer turns features into scores [N, A]; A is M, or K M where a candidate can
be chosen in K ways. The set transformer has no positional encoding, so the order of candidates has no influence
(arXiv 2301.03313); a mark on a candidate is a feature column of zeros and ones, which adds a learned vector to its
embedding. ReZero: arXiv 2003.04887.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from policyopt.types import Outputs, Part

Observation: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class View(Part):
    """What a policy is shown of a state."""

    def __call__(self, state: Any) -> Observation:
        raise NotImplementedError


def masked_log_softmax(scores: Tensor, legal: Tensor) -> Tensor:
    """Log-probabilities [..., A] of the legal choices; minus infinity elsewhere. At least one choice must be legal."""
    return scores.masked_fill(~legal, -torch.inf).log_softmax(-1)


def masked_entropy(logp: Tensor) -> Tensor:
    """Entropy [...] of log-probabilities [..., A] in which minus infinity stands for probability zero."""
    return -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1)


class ReZeroBlock(nn.Module):
    """Attention and feed-forward, each times a scalar that starts at zero; attention logits are not scaled."""

    def __init__(self, dim: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(dim, 3 * dim, bias=False)
        self.merge = nn.Linear(dim, dim)
        self.feedforward = nn.Sequential(nn.Linear(dim, feedforward), nn.ReLU(), nn.Linear(feedforward, dim))
        self.alpha = nn.Parameter(torch.zeros(2))

    def attend(self, h: Tensor) -> Tensor:
        count, candidates, dim = h.shape
        query, key, value = self.project(h).view(count, candidates, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        values = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        merged: Tensor = self.merge(values.transpose(1, 2).reshape(count, candidates, dim))
        return merged

    def forward(self, h: Tensor) -> Tensor:
        mixed = h + self.alpha[0] * self.attend(h)
        fed: Tensor = self.feedforward(mixed)
        return mixed + self.alpha[1] * fed


class SetTransformer(nn.Module):
    """features [N, M, F] → scores [N, M K], K choices a candidate, candidate by candidate."""

    def __init__(self, features: int, choices: int, *, dim: int, layers: int, heads: int, feedforward: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got dim={dim}, heads={heads}")
        self.embed = nn.Linear(features, dim)
        self.blocks = nn.Sequential(*(ReZeroBlock(dim, heads, feedforward) for _ in range(layers)))
        self.score = nn.Linear(dim, choices)

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.score(self.blocks(self.embed(features)))
        return scores.flatten(1)


class PointerPolicy(nn.Module):
    """Chooses among what ``view`` shows of a state, by the softmax of scorer(features) over the legal choices."""

    def __init__(self, scorer: nn.Module, view: View) -> None:
        super().__init__()
        self.scorer = scorer
        self.view = view

    def log_probabilities(self, observation: Observation) -> Tensor:
        """[N, A], with gradient."""
        device = next(self.scorer.parameters()).device
        scores = self.scorer(observation["features"].to(device))
        return masked_log_softmax(scores, observation["legal"].to(device))

    @torch.no_grad()
    def act(
        self, observation: Any, memory: Any, rng: torch.Generator, greedy: bool = False
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        """Actions [N] for a batch of states, and the log-probabilities of the choices made."""
        seen = self.view(observation)
        logp = self.log_probabilities(seen).cpu()
        index = logp.argmax(1, keepdim=True) if greedy else torch.multinomial(logp.exp(), 1, generator=rng)
        return seen["choice"].gather(1, index)[:, 0], {"behaviour_logp": logp.gather(1, index)[:, 0]}, memory

    def evaluate(self, batch: Any, want: Sequence[str] = ("logp",)) -> Outputs:
        """Rollouts: observations [N, T, M, F] are features, actions [N, T] indices of choices, legal [N, T, A]."""
        seen = {"features": batch.observations.flatten(0, 1), "legal": batch.legal.flatten(0, 1)}
        logp = self.log_probabilities(seen).view(batch.legal.shape)
        return Outputs(
            logp=logp.gather(-1, batch.actions[..., None])[..., 0] if "logp" in want else None,
            entropy=masked_entropy(logp) if "entropy" in want else None,
        )


@dataclass(frozen=True, kw_only=True)
class Pointer(Part):
    """Builds a pointer policy on a set transformer; ``view`` decides what it is shown of a state."""

    view: View
    dim: int
    layers: int
    heads: int
    feedforward: int

    def build(self, state: Any, seed: int) -> PointerPolicy:
        """A policy with weights drawn from ``seed``, for states like this one."""
        seen = self.view(state)
        _, candidates, features = seen["features"].shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            scorer = SetTransformer(
                features,
                seen["legal"].shape[1] // candidates,
                dim=self.dim,
                layers=self.layers,
                heads=self.heads,
                feedforward=self.feedforward,
            )
        return PointerPolicy(scorer, self.view)
