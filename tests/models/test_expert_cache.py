"""Expert caches: the exact hit rates of a small routing, limits, and a cache simulated one access at a time."""

from collections import OrderedDict

import pytest
import torch

from policyopt.models.expert_cache import (
    LookAhead,
    belady,
    cache_hits,
    hit_rates,
    least_frequently_used,
    least_recently_used,
)
from policyopt.models.mixture_of_experts import Routing
from policyopt.types import generator

SMALL = [[0, 1], [0, 2], [0, 1], [1, 3], [2, 3], [1, 3]]
POLICIES = [least_recently_used, least_frequently_used, belady, LookAhead(segment=4)]


def routing_of(experts, number, valid=None):
    experts = torch.as_tensor(experts)
    experts = experts[(None,) * (4 - experts.ndim)]
    return Routing(
        experts=experts, number=number, valid=torch.ones(experts.shape[1:3]).bool() if valid is None else valid
    )


def sticky(layers, samples, tokens, number, active, seed=0):
    """Random routing that often repeats the token before."""
    rng = generator(seed, "sticky")
    experts = torch.rand(layers, samples, tokens, number, generator=rng).topk(active).indices
    stay = torch.rand(layers, samples, tokens, generator=rng) < 0.6
    for token in range(1, tokens):
        experts[:, :, token] = torch.where(stay[:, :, token, None], experts[:, :, token - 1], experts[:, :, token])
    return routing_of(experts, number)


def naive_look_ahead(sequence, size, segment):
    """Hits of one layer and one sample: plain Python, after the definition."""
    cached, last, seen, hits, clock = set(), {}, set(), 0, 0
    for token, experts in enumerate(sequence):
        coming = [expert for later in sequence[token : token + segment] for expert in later]
        for expert in experts:
            hits += expert in cached or (expert not in seen and len(seen) < size)
            seen.add(expert)
        for expert in experts:
            if expert not in cached and len(cached) == size:
                cached.remove(min(cached, key=lambda e: (coming.count(e), last[e])))
            cached.add(expert)
            coming.remove(expert)
            clock += 1
            last[expert] = clock
    return hits


@pytest.mark.parametrize(
    ("segment", "rates"),
    [(1, [1 / 3, 7 / 12, 10 / 12, 1]), *((m, [1 / 3, 7 / 12, 11 / 12, 1]) for m in (2, 3, 6))],
)
def test_look_ahead_on_the_small_routing(segment, rates):
    found = hit_rates(routing_of(SMALL, 4), [1, 2, 3, 4], LookAhead(segment=segment))
    assert found[0, 0].tolist() == pytest.approx(rates)


@pytest.mark.parametrize("segment", [1, 3, 8, 40])
def test_look_ahead_equals_a_cache_simulated_access_by_access(segment):
    routing = sticky(2, 3, 40, 8, 3)
    found = cache_hits(routing, list(range(1, 9)), LookAhead(segment=segment)).sum(2)
    for layer, samples in enumerate(routing.experts.tolist()):
        for sample, sequence in enumerate(samples):
            naive = [naive_look_ahead(sequence, size, segment) for size in range(1, 9)]
            assert found[layer, sample].tolist() == naive


def test_least_recently_used_equals_an_ordered_dictionary():
    routing = sticky(1, 1, 60, 7, 1)
    for size, found in zip(range(1, 8), hit_rates(routing, list(range(1, 8)), least_recently_used)[0, 0], strict=True):
        cache, hits = OrderedDict(), 0
        for expert in routing.experts.flatten().tolist():
            hits += expert in cache or len(cache) < size
            cache[expert] = cache.pop(expert, None)
            if len(cache) > size:
                cache.popitem(last=False)
        assert found.item() == pytest.approx(hits / 60)


def test_looking_one_token_ahead_is_least_recently_used():
    routing = sticky(2, 4, 50, 10, 2)
    sizes = list(range(1, 11))
    assert torch.equal(
        cache_hits(routing, sizes, LookAhead(segment=1)), cache_hits(routing, sizes, least_recently_used)
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_a_larger_cache_hits_no_less_and_a_full_one_always(policy):
    rates = hit_rates(sticky(2, 4, 50, 10, 2), list(range(1, 12)), policy)
    assert (rates.diff(dim=-1) >= 0).all()
    assert (rates[..., 9:] == 1).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_belady_is_the_best_where_tokens_have_one_expert(policy):
    routing = sticky(3, 8, 80, 9, 1)
    sizes = list(range(1, 10))
    assert (hit_rates(routing, sizes, belady) >= hit_rates(routing, sizes, policy) - 1e-9).all()


def test_frequency_outweighs_recency_in_a_least_frequently_used_cache():
    """After 0 0 1 2, a cache of two has evicted 1 and kept 0, which was used longer ago but more often."""
    routing = routing_of([[0], [0], [1], [2], [0]], 3)
    assert cache_hits(routing, [2], least_frequently_used)[0, 0, :, 0].tolist() == [1, 1, 1, 0, 1]
    assert cache_hits(routing, [2], least_recently_used)[0, 0, :, 0].tolist() == [1, 1, 1, 0, 0]


def test_the_look_ahead_counts_uses_and_is_not_monotone_in_the_segment():
    """Counting uses, not distances: seeing more can hurt."""
    rates = torch.stack(
        [hit_rates(sticky(1, 32, 128, 12, 1), [4], LookAhead(segment=m)).mean() for m in (1, 4, 16, 128)]
    )
    assert rates[1] > rates[0]
    assert rates[3] < rates[2]


def test_padding_neither_hits_nor_attracts():
    routing = sticky(2, 2, 20, 6, 2)
    valid = torch.arange(20) < torch.tensor([[12], [20]])
    padded = Routing(experts=routing.experts, number=6, valid=valid)
    alone = Routing(experts=routing.experts[:, :1, :12], number=6, valid=valid[:1, :12])
    for policy in (LookAhead(segment=8), least_recently_used):
        found = hit_rates(padded, [1, 2, 3], policy)
        assert torch.equal(found[:, :1], hit_rates(alone, [1, 2, 3], policy))
        assert torch.equal(found[:, 1:], hit_rates(routing, [1, 2, 3], policy)[:, 1:])


def test_one_cache_of_two_equal_layers_is_two_caches():
    """Layers that never use more than their half of the cache can share it without loss."""
    one = sticky(1, 2, 30, 6, 2)
    narrow = routing_of((one.experts % 2 * 3 + torch.arange(2)).expand(2, -1, -1, -1), 6)
    shared = hit_rates(narrow.one_cache(), [8], LookAhead(segment=4))
    assert torch.equal(shared[0], hit_rates(narrow, [4], LookAhead(segment=4)).mean(0))
    assert narrow.one_cache().number == 12
    assert narrow.one_cache().experts[0, 0, 0, 2:].tolist() == (narrow.experts[1, 0, 0] + 6).tolist()


def test_a_cache_without_room_is_refused():
    with pytest.raises(ValueError, match="at least one expert"):
        hit_rates(routing_of(SMALL, 4), [0, 2], belady)
