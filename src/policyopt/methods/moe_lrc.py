"""Local routing consistency of mixture-of-experts models: SRP and SCH (arXiv 2505.16056).

Keeping few experts in fast memory pays only where neighbouring tokens use the same experts. Two numbers measure this
from the routing alone. SRP: how well one set of experts, fixed over a segment of m tokens, stands for the segment's
routing, as the best F1. SCH: the hit rate of a cache that may look one segment ahead (``models.expert_cache``).

Where the paper leaves it open: local balance is the normalised entropy of the experts' shares inside a segment; an
expert that is never used has no SRP and no specialisation (NaN), and correlations leave it out.

Tables of counts keep a leading axis of samples, and every statistic is a function of their sum over samples, so that a
bootstrap over samples is one product: ``resamples(…) @ table.flatten(1)``. Axes: L layers, N samples, T tokens, K
active experts, E experts, D domains, V types of tokens, m tokens of a segment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from policyopt.models.expert_cache import LookAhead, hit_rates
from policyopt.models.mixture_of_experts import Routing

FAMILY = "analyses"
KIND = "analysis"


def analyse(
    routing: Routing, segments: Sequence[int] = (4, 16, 64), look_ahead: int = 16, ratios: Sequence[float] = (1, 2, 4)
) -> dict[str, float]:
    """What the routing alone says of a model, by name.

    ``srp/m`` and what independent routing would give, ``srp/m/layers`` (each layer with a threshold of its own, mean
    over layers), ``sch/ρ`` for one cache of ρ experts per active expert that all layers share, ``sch/ρ/layers`` for a
    cache a layer, the ``balance`` of the experts inside a segment of ``look_ahead`` tokens and over everything.
    """
    layers, _, _, active = routing.experts.shape
    found = {"srp/floor": smallest_srp(routing.number, active)}
    for segment in segments:
        table = segment_histogram(routing, segment)
        model = segment_routing(table.sum((0, 1, 2)))
        found[f"srp/{segment}"] = float(model.srp)
        found[f"srp/{segment}/size"] = float(model.size)
        found[f"srp/{segment}/independent"] = independent_srp(routing.number, active, segment)
        found[f"srp/{segment}/layers"] = float(segment_routing(table.sum((0, 2))).srp.mean())
    ahead, each = LookAhead(segment=look_ahead), [max(1, round(ratio * active)) for ratio in ratios]
    one = hit_rates(routing.one_cache(), [layers * size for size in each], ahead).mean((0, 1))
    own = hit_rates(routing, each, ahead).mean((0, 1))
    for ratio, shared, layered in zip(ratios, one, own, strict=True):
        found[f"sch/{ratio:g}"], found[f"sch/{ratio:g}/layers"] = float(shared), float(layered)
    found["balance/local"] = float(local_balance(segment_histogram(routing, look_ahead).sum(0), active).mean())
    found["balance/global"] = float(global_balance(activation_counts(routing).sum(0)).mean())
    return found


# Segment routing best performance (SRP)


def window_counts(experts: Tensor, number: int, segment: int) -> Tensor:
    """How often each expert is used in every window of ``segment`` tokens: [..., T, K] → [..., T - m + 1, E]."""
    length = experts.shape[-2]
    if not 1 <= segment <= length:
        raise ValueError(f"a segment has 1 to {length} tokens, the length of the samples, got segment={segment}")
    uses = torch.zeros(*experts.shape[:-2], length + 1, number, dtype=torch.int32)
    uses[..., 1:, :].scatter_add_(-1, experts, torch.ones_like(experts, dtype=torch.int32))
    running = uses.cumsum(-2, dtype=torch.int32)
    return running[..., segment:, :] - running[..., :-segment, :]


def segment_histogram(routing: Routing, segment: int) -> Tensor:
    """How many windows of each sample use an expert 0, 1, …, m times: [N, L, E, m + 1].

    Windows move by one token; they never cross a sample and never hold padding.
    """
    layers, samples, _, _ = routing.experts.shape
    inside = window_counts(routing.valid.long()[..., None], 2, segment)[..., 1] == segment
    table = torch.zeros(samples, layers, routing.number, segment + 1, dtype=torch.int64)
    for layer, experts in enumerate(
        routing.experts
    ):  # a layer at a time: the windows of all layers would fill the memory
        counts = window_counts(experts, routing.number, segment).transpose(1, 2).long()
        weights = inside.long()[:, None].expand_as(counts)
        table[:, layer].scatter_add_(-1, counts, weights)
    return table


class SegmentRouting(NamedTuple):
    """The best fixed choice of experts: SRP = its F1, the least uses that it asks of a chosen expert, and the size of
    the chosen sets relative to K."""

    srp: Tensor
    threshold: Tensor
    size: Tensor


def segment_routing(histogram: Tensor) -> SegmentRouting:
    """SRP = max_τ 2 Σ c [c ≥ τ] / (m #{c ≥ τ} + Σ c), over the uses c of an expert in a segment.

    The table [..., m + 1] is summed beforehand over what shares the one threshold τ: a model's SRP is that of
    ``histogram.sum((0, 1, 2))``, its layers' of ``histogram.sum((0, 2))``, its experts' of ``histogram.sum(0)``.
    """
    histogram = histogram.double()
    uses = torch.arange(histogram.shape[-1], dtype=torch.float64)
    chosen = (len(uses) - 1) * histogram.flip(-1).cumsum(-1).flip(-1)
    matched = (uses * histogram).flip(-1).cumsum(-1).flip(-1)
    total = matched[..., :1]
    best = (2 * matched / (chosen + total)).max(-1)
    size = chosen.gather(-1, best.indices[..., None]) / total
    srp = best.values.where(total[..., 0] > 0, torch.nan)
    return SegmentRouting(srp, best.indices, size[..., 0])


def smallest_srp(number: int, active: int) -> float:
    """What choosing every expert gives, whatever the routing: 2 K / (K + E)."""
    return 2 * active / (active + number)


def independent_srp(number: int, active: int, segment: int) -> float:
    """SRP of routing that is uniform and independent from token to token (exact, over binomial counts)."""
    from scipy.stats import binom

    table = torch.as_tensor(binom.pmf(range(segment + 1), segment, active / number))
    return float(segment_routing(table).srp)


# Specialisation and balance


def activation_counts(routing: Routing) -> Tensor:
    """How many tokens of each sample use an expert: [N, L, E]."""
    layers, samples, _, active = routing.experts.shape
    counts = torch.zeros(layers, samples, routing.number, dtype=torch.int64)
    weights = routing.valid.long()[..., None].expand(-1, -1, active).expand_as(routing.experts)
    return counts.scatter_add_(2, routing.experts.flatten(2), weights.flatten(2)).transpose(0, 1)


def domain_specialisation(counts: Tensor) -> Tensor:
    """Standard deviation over mean, over the domains, of the share of a domain's tokens that use the expert.

    counts [..., D, L, E] is ``activation_counts`` summed over each domain's samples → [..., L, E].
    """
    rates = counts / counts.sum(-1, keepdim=True)
    return rates.std(-3) / rates.mean(-3)


def token_counts(routing: Routing, tokens: Tensor, vocabulary: int) -> Tensor:
    """How often an expert is a token's first choice, for each type of token: tokens [N, T] → [N, V, L, E]."""
    layers, samples, length, _ = routing.experts.shape
    cell = tokens.expand(layers, -1, -1) * routing.number + routing.experts[..., 0]
    table = torch.zeros(layers, samples, vocabulary * routing.number, dtype=torch.int64)
    table.scatter_add_(2, cell, routing.valid.long().expand(layers, samples, length))
    return table.view(layers, samples, vocabulary, routing.number).permute(1, 2, 0, 3)


def vocabulary_specialisation(counts: Tensor, minimum: int = 20) -> Tensor:
    """Each type of token with ``minimum`` occurrences belongs to the expert that serves the largest share of it; an
    expert's score is the mean of these shares over its types, NaN without any. counts [..., V, L, E] → [..., L, E]."""
    occurrences = counts.sum(-1, keepdim=True)
    share, expert = (counts / occurrences).nan_to_num().max(-1, keepdim=True)
    frequent = (occurrences >= minimum).to(share.dtype)
    score = torch.zeros_like(counts, dtype=share.dtype).scatter_(-1, expert, share * frequent).sum(-3)
    return score / torch.zeros_like(counts, dtype=share.dtype).scatter_(-1, expert, frequent).sum(-3)


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation over the last axis, of the places where both are numbers."""
    both = (x.isfinite() & y.isfinite()).double()
    x, y = x.double().nan_to_num(), y.double().nan_to_num()
    count = both.sum(-1, keepdim=True)
    x, y = ((v - (both * v).sum(-1, keepdim=True) / count) * both for v in (x, y))
    return (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()


def local_balance(histogram: Tensor, active: int) -> Tensor:
    """The entropy of the experts' shares c / (K m) of a segment over log E, averaged over segments; 1 is balanced.

    histogram [..., E, m + 1] → [...]. The whole corpus as one segment is the usual, global balance.
    """
    experts, segment = histogram.shape[-2], histogram.shape[-1] - 1
    share = torch.arange(segment + 1, dtype=torch.float64) / (segment * active)
    entropy = (histogram.double() @ -share.xlogy(share)).sum(-1)
    return entropy / histogram.sum(-1).double().mean(-1) / math.log(experts)


def global_balance(counts: Tensor) -> Tensor:
    """The entropy of the experts' shares of all accesses over log E: counts [..., E] → [...]."""
    share = counts.double() / counts.sum(-1, keepdim=True)
    return -share.xlogy(share).sum(-1) / math.log(counts.shape[-1])


# Intervals


def resamples(strata: Tensor, draws: int, rng: torch.Generator) -> Tensor:
    """How often each sample is drawn in a bootstrap that keeps the size of every stratum: strata [N] → [draws, N]."""
    weights = torch.zeros(draws, len(strata), dtype=torch.float64)
    for stratum in range(int(strata.max()) + 1):
        rows = (strata == stratum).nonzero()[:, 0]
        picks = rows[torch.randint(len(rows), (draws, len(rows)), generator=rng)]
        weights.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))
    return weights


def basic_interval(estimate: float, draws: Tensor, level: float = 0.95) -> tuple[float, float]:
    """The basic (reverse percentile) bootstrap interval: twice the estimate less the draws' quantiles → (low, high)."""
    tail = torch.tensor([(1 + level) / 2, (1 - level) / 2], dtype=draws.dtype)
    low, high = (2 * estimate - draws.quantile(tail)).tolist()
    return low, high
