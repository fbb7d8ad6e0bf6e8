"""SPO: segments of a response get advantages from Monte Carlo values at their ends, without a critic (arXiv 2505.23564).

A_segment = V(state at its end) - V(state at its start). Only tokens that the policy was unsure of, p < 0.9, are trained: there
alone a response could have gone another way. Two ways to get the values:

    method (tree)     a tree of fixed branching (6-6-6): V(leaf) = R, V(node) = mean of its children. Every edge is a row of its
                      own; edges without advantage are dropped, at most 32 a prompt are trained on in a step, the rest later
    chain             responses are cut before every fifth token with p < 0.9, and 9 fresh continuations are run at each cut
    tree_normalized   (V(child) - V(parent)) / deviation among the siblings
    tree_all_tokens   without the probability mask
    chain_lengths     cuts after every 8 tokens
    chain_steps       cuts after every step, all tokens trained (VinePPO, arXiv 2410.01679)
    chain_thirds      three equal pieces, all tokens trained

Advantages are whitened over the trained tokens of a minibatch; PPO's clip, one mean over tokens; k3 to the initial policy, summed
over a row's trained tokens (β = 1e-4). Sampled here at temperature 1 and top-p 1 (published: 0.6, and 0.9 or 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor

from policyopt.credit.returns import Whitened
from policyopt.learners.annotators import Reference
from policyopt.learners.on_policy import OnPolicy
from policyopt.models.language import LanguagePolicy, Sampling
from policyopt.objectives.divergence import ReferenceK3
from policyopt.objectives.estimators import SequenceSum
from policyopt.objectives.policy_gradient import PolicyGradient, RatioClip, TokenMean, log_ratio
from policyopt.rollouts.kept import columns_of, from_columns, joined
from policyopt.rollouts.language import Groups, prompt_ids, respond, response_metrics, scored_rollouts
from policyopt.rollouts.segments import monte_carlo_values
from policyopt.rollouts.tree import Fixed, grow
from policyopt.types import Clock, Collected, Collector, Loss, Outputs, Part, Rollouts

FAMILY = "language"
VARIANTS = (
    "tree",
    "chain",
    "tree_normalized",
    "tree_all_tokens",
    "chain_lengths",
    "chain_steps",
    "chain_thirds",
)


# -- chains: segments between cuts


def segment_advantage(begins: Tensor, value: Tensor, reward: Tensor, mask: Tensor) -> Tensor:
    """V at a segment's end - V at its start, at each of its tokens → [N, T]; 0 before the first segment.

    begins [N, T]: True at the first token of a segment; value [N, T]: that of the state before such a token; reward [N]
    stands in for the value behind the last. A row's segments add up to R - V(first cut).
    """
    number = begins.cumsum(1)
    table = torch.zeros(len(begins), begins.shape[1] + 2, device=value.device)  # column j: the start of segment j, 1 …
    rows, steps = begins.nonzero(as_tuple=True)
    table[rows, number[rows, steps]] = value[rows, steps].float()
    table.scatter_(1, number[:, -1:] + 1, reward[:, None].float())
    difference = table.gather(1, number + 1) - table.gather(1, number)
    return torch.where((number > 0) & mask, difference, 0.0)


@dataclass(frozen=True, kw_only=True)
class Partition(Part):
    """Where segments begin. Default: before every ``interval``-th uncertain token, the first of them included."""

    interval: int = 5

    def __call__(self, batch: Rollouts, uncertain: Tensor, policy: LanguagePolicy) -> Tensor:
        """uncertain [N, T] → True at the first tokens of segments [N, T]."""
        return uncertain & ((uncertain.cumsum(1) - 1) % self.interval == 0)


@dataclass(frozen=True, kw_only=True)
class Lengths(Partition):
    """Every ``interval`` tokens."""

    def __call__(self, batch: Rollouts, uncertain: Tensor, policy: LanguagePolicy) -> Tensor:
        return batch.mask & (torch.arange(batch.mask.shape[1], device=batch.mask.device) % self.interval == 0)


@dataclass(frozen=True, kw_only=True)
class Pieces(Partition):
    """``interval`` pieces of equal length a response."""

    interval: int = 3

    def __call__(self, batch: Rollouts, uncertain: Tensor, policy: LanguagePolicy) -> Tensor:
        step = torch.arange(batch.mask.shape[1], device=batch.mask.device)
        piece = step * self.interval // batch.length[:, None]
        return batch.mask & (piece != (step - 1) * self.interval // batch.length[:, None])


@dataclass(frozen=True, kw_only=True)
class Steps(Partition):
    """Behind every ``interval``-th token whose text holds ``mark``, and at the beginning."""

    interval: int = 1
    mark: str = "\n"

    def __call__(self, batch: Rollouts, uncertain: Tensor, policy: LanguagePolicy) -> Tensor:
        present, index = batch.actions.unique(return_inverse=True)
        marks = [self.mark in policy.tokenizer.decode([token]) for token in present.tolist()]
        ends = torch.tensor(marks, device=index.device)[index] & batch.mask
        ends &= ends.cumsum(1) % self.interval == 0
        return batch.mask & torch.cat([torch.ones_like(ends[:, :1]), ends[:, :-1]], 1)


GIVEN = (*Groups.gives, "advantage", "weight")


@dataclass(frozen=True, kw_only=True)
class CutPoints(Groups):
    """Groups, with segment advantages from ``continuations`` at every cut; ``weight`` is 1 where p < ``below``.

    Cuts with the same prefix are valued once. All tokens are paid for, those of continuations as well.
    """

    gives: ClassVar[tuple[str, ...]] = GIVEN
    prompts: int = 64
    partition: Partition = Partition()
    continuations: int = 9
    below: float = 0.9

    def __call__(self, policy: LanguagePolicy, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        ids, sampling = prompt_ids(problem, self.prompts, clock), self.sampling
        rng, further = (clock.generator(name, policy.device) for name in ("sample", "continue"))
        sampled = respond(policy, problem, ids, self.samples, sampling, rng, keep=True)
        batch = scored_rollouts(policy, problem, ids, sampled)
        uncertain = batch.mask & (batch.old_logp.exp() < self.below)
        begins = self.partition(batch, uncertain, policy)
        cuts = begins.nonzero()
        found, cost = monte_carlo_values(policy, problem, ids, sampled, cuts, self.continuations, sampling, further)
        value = torch.zeros(begins.shape, device=begins.device)
        value[begins] = found
        advantage = segment_advantage(begins, value, batch.scores["reward"], batch.mask)
        metrics = response_metrics(batch, sampled)
        metrics |= {name: metrics[name] + count for name, count in cost.items()}
        metrics |= {"segments/cuts": len(cuts) / len(batch), "segments/trained": uncertain.sum() / batch.mask.sum()}
        return Collected({"rollouts": batch.replace(advantage=advantage, weight=uncertain.float())}, metrics)


# -- trees: edges


class EdgeMemory:
    """Edges that were not trained on yet, and the step in which each was sampled."""

    def __init__(self) -> None:
        self.edges: Rollouts | None = None
        self.born = torch.zeros(0, dtype=torch.int64)

    def exchange(self, fresh: Rollouts, step: int, most: int, oldest: int, rng: torch.Generator) -> Rollouts:
        """``fresh`` edges come in, at most ``most`` a prompt go out at random; those older than ``oldest`` steps are lost."""
        edges = joined([fresh] if self.edges is None else [self.edges, fresh])
        born = torch.cat([self.born, torch.full((len(fresh),), step)])
        young = step - born <= oldest
        edges, born = edges[young.to(edges.mask.device)], born[young]
        order = torch.rand(len(born), generator=rng).argsort()
        _, prompt, count = edges.prompt_id.cpu()[order].unique(return_inverse=True, return_counts=True)
        place = torch.arange(len(born)) - (count.cumsum(0) - count).repeat_interleave(count)
        taken = torch.zeros(len(born), dtype=torch.bool)
        taken[order[prompt.argsort(stable=True)][place < most]] = True
        self.edges, self.born = (edges[~taken], born[~taken]) if not bool(taken.all()) else (None, born[:0])
        return edges[taken]

    def state_dict(self) -> dict[str, Any]:
        return {"born": self.born, "edges": None if self.edges is None else columns_of(self.edges)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.born = state["born"]
        self.edges = None if state["edges"] is None else from_columns(state["edges"])


@dataclass(frozen=True, kw_only=True)
class Edges(Collector):
    """A tree for each of ``prompts`` prompts; its edges, each behind its parent's whole text, with V(child) - V(parent).

    ``normalized`` divides by the population deviation among the siblings (+ 1e-8). An edge is kept with the probabilities it
    was sampled with, for ``oldest`` steps at most; ``most`` of each prompt go into a step. ``weight`` is 1 where p < ``below``.
    """

    gives: ClassVar[tuple[str, ...]] = GIVEN
    prompts: int = 16
    branching: Fixed = Fixed(factors=(6, 6, 6), segment=6)
    sampling: Sampling = Sampling()
    below: float = 0.9
    normalized: bool = False
    most: int = 32
    oldest: int = 8

    def __post_init__(self) -> None:
        if min(self.prompts, self.most) < 1 or self.oldest < 0:
            raise ValueError(f"prompts and most must be positive and oldest not negative, got {self}")

    def memory(self) -> EdgeMemory:
        return EdgeMemory()

    def __call__(self, policy: LanguagePolicy, problem: Any, clock: Clock, memory: Any = None) -> Collected:
        ids, rng = prompt_ids(problem, self.prompts, clock), clock.generator("sample", policy.device)
        forest = grow(policy, problem, ids, self.branching, self.sampling, rng, clock.generator("tree"))
        responses, sampled = forest.rollouts(policy, problem, ids)
        advantage = edge_advantage(
            forest.values(forest.leaves, responses.scores["reward"]), forest.parent, self.normalized
        )
        kept = advantage.nonzero().squeeze(1)
        kept = kept if len(kept) else torch.tensor([len(ids)])  # an edge that teaches nothing, so that there is a batch
        edges = forest.edges(kept, ids)
        uncertain = edges.mask & (edges.old_logp.exp() < self.below)
        own = advantage[kept].to(edges.mask.device)[:, None] * edges.mask
        scores = TensorDict({"advantage": advantage[kept].to(edges.mask.device)}, [len(kept)])
        edges = edges.replace(advantage=own, weight=uncertain.float(), scores=scores)
        batch = memory.exchange(edges, clock.step, self.most, self.oldest, clock.generator("edges"))
        metrics = {**response_metrics(responses, sampled), "cost/tokens": forest.sampled_tokens}
        metrics |= {"segments/trained": uncertain.sum() / edges.mask.sum(), "tree/edges": len(kept) / len(ids)}
        return Collected({"rollouts": batch}, metrics)


def edge_advantage(value: Tensor, parent: Tensor, normalized: bool = False) -> Tensor:
    """V(node) - V(parent) [K], 0 for roots (parent -1); the same value gives exactly 0. ``normalized``: see ``Edges``."""
    below = parent >= 0
    difference = torch.where(below, value - value[parent.clamp(min=0)], 0.0)
    difference = difference.masked_fill(difference.abs() < 1e-6, 0.0)  # rounding of the means
    if not normalized:
        return difference
    above = parent.clamp(min=0)
    square = torch.zeros_like(value).index_add_(0, above, difference.square())
    count = torch.zeros_like(value).index_add_(0, above, below.float()).clamp(min=1)
    return difference / ((square / count).sqrt()[above] + 1e-8)


# -- the objective


@dataclass(frozen=True, kw_only=True)
class SegmentObjective(PolicyGradient):
    """The clipped policy gradient on steps of weight 1: advantages whitened over them in each minibatch, and ``penalty``, the
    divergence summed over a row's steps and averaged over rows.

    A minibatch without such a step takes all; one whose mean ratio exceeds ``skip_above`` is left out. ``share`` has one
    more column, the penalty's. ``whiten`` False: for advantages that are whitened over the whole batch
    (``credit.returns.Whitened``).
    """

    measures: ClassVar[bool] = True
    penalty: ReferenceK3 | None = field(default_factory=lambda: ReferenceK3(coefficient=1e-4))
    whiten: bool = True
    skip_above: float = 10.0

    def prepare(self, batch: Rollouts) -> Rollouts:
        if batch.weight is not None and not bool((batch.weight * batch.mask).any()):
            batch = batch.replace(weight=batch.mask.float())
        prepared = super().prepare(Whitened()(batch) if self.whiten else batch)
        return prepared.replace(share=torch.cat([prepared.share, SequenceSum()(batch)[..., None]], -1))

    def measure(self, logp: Tensor, batch: Rollouts, rng: torch.Generator) -> Rollouts:
        ratio = (batch.share[..., 1] * log_ratio(logp, batch).exp()).sum()
        return batch.replace(share=batch.share * (ratio <= self.skip_above))

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Loss:
        loss = super().__call__(outputs, batch.replace(share=batch.share[..., :-1]))
        if self.penalty is None:
            return loss
        term = (batch.share[..., -1] * self.penalty(outputs, batch)).sum()
        return Loss(loss.value + term, {**loss.metrics, f"loss/{self.penalty.name}": term.detach()})


# -- methods


def tree() -> OnPolicy:
    objective = SegmentObjective(stabilization=RatioClip(low=0.2, high=0.2), aggregation=TokenMean())
    return OnPolicy(collector=Edges(), annotators=(Reference(),), objective=objective)


method = tree


def tree_normalized() -> OnPolicy:
    return replace(tree(), collector=Edges(normalized=True))


def tree_all_tokens() -> OnPolicy:
    return replace(tree(), collector=Edges(below=2.0))


def chain() -> OnPolicy:
    return replace(tree(), collector=CutPoints(), epochs=2, minibatches=8)


def chain_lengths() -> OnPolicy:
    return replace(chain(), collector=CutPoints(partition=Lengths(interval=8)))


def chain_steps() -> OnPolicy:
    return replace(chain(), collector=CutPoints(partition=Steps(mark=","), below=2.0))


def chain_thirds() -> OnPolicy:
    return replace(chain(), collector=CutPoints(partition=Pieces(), below=2.0))
