"""Local routing consistency: the exact numbers of small routings, limits, and independent implementations."""

import math

import pytest
import torch

from policyopt.methods.moe_lrc import (
    activation_counts,
    analyse,
    basic_interval,
    correlation,
    domain_specialisation,
    global_balance,
    independent_srp,
    local_balance,
    resamples,
    segment_histogram,
    segment_routing,
    smallest_srp,
    token_counts,
    vocabulary_specialisation,
    window_counts,
)
from policyopt.models.mixture_of_experts import Routing
from policyopt.types import generator

SMALL = [[0, 1], [0, 2], [0, 1], [1, 3], [2, 3], [1, 3]]


def routing_of(experts, number, valid=None):
    experts = torch.as_tensor(experts)
    experts = experts[(None,) * (4 - experts.ndim)]
    valid = torch.ones(experts.shape[1:3], dtype=torch.bool) if valid is None else torch.as_tensor(valid)
    return Routing(experts=experts, number=number, valid=valid)


def independent(layers, samples, tokens, number, active, seed=0):
    scores = torch.rand(layers, samples, tokens, number, generator=generator(seed, "routing"))
    return routing_of(scores.topk(active).indices, number)


def model_level(routing, segment):
    return segment_routing(segment_histogram(routing, segment).sum((0, 1, 2)))


@pytest.mark.parametrize(
    ("segment", "srp", "threshold", "size"),
    [(1, 1.0, 1, 1.0), (2, 0.8, 1, 1.5), (3, 0.75, 2, 1.0), (6, 2 / 3, 0, 2.0)],
)
def test_srp_of_the_small_routing(segment, srp, threshold, size):
    found = model_level(routing_of(SMALL, 4), segment)
    assert found.srp.item() == pytest.approx(srp)
    assert found.threshold.item() == threshold
    assert found.size.item() == pytest.approx(size)


def test_f1_of_the_best_sets_is_the_best_of_all_sets():
    """With one segment, SRP is the largest F1 that any one set of experts reaches against the segment's routing."""
    routing = independent(1, 1, 8, 6, 2, seed=3)
    counts = window_counts(routing.experts[0, 0], 6, 8)[0].double()
    subsets = torch.tensor([[i >> e & 1 for e in range(6)] for i in range(1, 64)], dtype=torch.float64)
    f1 = 2 * (subsets @ counts) / (8 * subsets.sum(1) + counts.sum())
    assert model_level(routing, 8).srp.item() == pytest.approx(f1.max().item())


@pytest.mark.parametrize("segment", [1, 2, 5, 32])
def test_constant_routing_is_perfectly_consistent(segment):
    constant = torch.tensor([3, 1]).expand(2, 3, 32, 2)
    assert model_level(routing_of(constant, 8), segment).srp.item() == pytest.approx(1.0)


def test_one_token_is_always_consistent_and_no_routing_is_below_the_floor():
    routing = independent(2, 3, 32, 12, 3)
    assert model_level(routing, 1).srp.item() == pytest.approx(1.0)
    assert smallest_srp(12, 3) == pytest.approx(0.4)
    assert all(model_level(routing, m).srp.item() >= smallest_srp(12, 3) - 1e-12 for m in (2, 7, 32))
    assert independent_srp(12, 3, 4096) == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize(("segment", "srp"), [(4, 0.464), (16, 0.321), (64, 0.252)])
def test_srp_of_independent_routing(segment, srp):
    assert model_level(independent(1, 64, 256, 64, 8), segment).srp.item() == pytest.approx(srp, abs=0.003)
    assert independent_srp(64, 8, segment) == pytest.approx(srp, abs=0.001)


def test_srp_does_not_see_the_experts_names_nor_the_order_of_the_samples():
    routing = independent(2, 6, 24, 8, 2)
    renamed = torch.randperm(8, generator=generator(0, "names"))[routing.experts]
    shuffled = routing.experts[:, torch.randperm(6, generator=generator(0, "order"))]
    reference = model_level(routing, 5).srp
    assert model_level(routing_of(renamed, 8), 5).srp == reference
    assert model_level(routing_of(shuffled, 8), 5).srp == reference


def test_srp_of_a_whole_sample_does_not_see_the_order_of_its_tokens():
    routing = independent(1, 4, 16, 8, 2)
    tokens = routing.experts[:, :, torch.randperm(16, generator=generator(0, "order"))]
    assert model_level(routing_of(tokens, 8), 16).srp == model_level(routing, 16).srp


def test_levels_share_one_table():
    """A layer alone, taken from the table of all layers, is that layer's model; NaN stands for an unused expert."""
    routing = independent(3, 4, 24, 6, 2)
    table = segment_histogram(routing, 4)
    alone = routing_of(routing.experts[1:2], 6)
    assert segment_routing(table.sum((0, 2))).srp[1] == model_level(alone, 4).srp
    unused = segment_routing(segment_histogram(routing_of(SMALL, 5), 2).sum(0)).srp[0]
    assert unused.isnan().tolist() == [False] * 4 + [True]


def test_one_threshold_for_all_layers_gives_flat_layers_fewer_experts():
    peaked = torch.randint(2, (1, 8, 64, 1), generator=generator(0, "peaked"))
    flat = torch.randint(8, (1, 8, 64, 1), generator=generator(0, "flat"))
    table = segment_histogram(routing_of(torch.cat([peaked, flat]), 8), 16)
    for_peaked, for_flat = segment_routing(table.sum((0, 2))).threshold
    assert for_flat < segment_routing(table.sum((0, 1, 2))).threshold < for_peaked


def test_window_counts_equal_naive_counts_and_double():
    experts = independent(2, 3, 40, 7, 3).experts
    used = torch.nn.functional.one_hot(experts, 7).sum(-2)
    naive = torch.stack([used[:, :, start : start + 8].sum(2) for start in range(33)], dim=2)
    eight = window_counts(experts, 7, 8)
    assert torch.equal(eight, naive.int())
    assert torch.equal(window_counts(experts, 7, 16), eight[:, :, :-8] + eight[:, :, 8:])


def test_windows_hold_no_padding_and_cross_no_sample():
    padded = independent(2, 2, 10, 5, 2)
    lengths = [6, 10]
    valid = torch.arange(10) < torch.tensor(lengths)[:, None]
    table = segment_histogram(routing_of(padded.experts, 5, valid), 4)
    for sample, length in enumerate(lengths):
        alone = segment_histogram(routing_of(padded.experts[:, sample : sample + 1, :length], 5), 4)
        assert torch.equal(table[sample : sample + 1], alone)
        assert table[sample, 0, 0].sum() == length - 3


def test_a_segment_longer_than_the_samples_is_refused():
    with pytest.raises(ValueError, match=r"1 to 6 tokens.*segment=7"):
        segment_histogram(routing_of(SMALL, 4), 7)


def test_routing_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.2 for 3 experts"):
        routing_of(SMALL, 3)
    with pytest.raises(ValueError, match="layers, samples, tokens, active"):
        Routing(experts=torch.zeros(2, 3, dtype=torch.int64), number=4, valid=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"`valid` is \[samples, tokens\]"):
        routing_of(SMALL, 4, valid=[[True]])


def test_domain_specialisation_by_hand():
    """Expert 0 serves 8 of 10 tokens of one domain and 2 of 10 of the other, expert 1 the rest, expert 2 none."""
    counts = torch.tensor([[[8, 2, 0]], [[4, 16, 0]]])
    found = domain_specialisation(counts)
    assert found[0, :2].tolist() == pytest.approx([(0.18**0.5) / 0.5] * 2)
    assert found[0, 2].isnan()


def test_activation_counts_leave_out_padding():
    valid = torch.tensor([[True, True, True, False, False, False]])
    assert activation_counts(routing_of(SMALL, 4, valid)).tolist() == [[[3, 2, 1, 0]]]
    assert activation_counts(routing_of(SMALL, 4)).tolist() == [[[3, 4, 2, 3]]]


def test_vocabulary_specialisation_by_hand():
    """Token 0 goes to expert 0 in 30 of 40, token 1 in 20 of 20; token 2 to expert 1 in 15 of 20; token 3 is too rare
    to count, and expert 2 owns no token."""
    counts = torch.tensor([[[30, 10, 0]], [[20, 0, 0]], [[0, 15, 5]], [[0, 0, 19]]])
    found = vocabulary_specialisation(counts)[0]
    assert found[:2].tolist() == pytest.approx([(0.75 + 1.0) / 2, 0.75])
    assert found[2].isnan()
    assert vocabulary_specialisation(counts, minimum=19)[0, 2] == 1.0


def test_token_counts_take_the_first_expert_of_each_token():
    tokens = torch.tensor([[0, 1, 0, 1, 1, 0]])
    valid = torch.tensor([[True, True, True, True, True, False]])
    assert token_counts(routing_of(SMALL, 4, valid), tokens, 2)[0, :, 0].tolist() == [[2, 0, 0, 0], [1, 1, 1, 0]]


def test_correlation_leaves_out_what_is_not_a_number():
    x = torch.tensor([1.0, 2.0, 4.0, math.nan, 7.0])
    y = torch.tensor([1.0, 3.0, 2.0, 5.0, math.nan])
    kept = torch.corrcoef(torch.tensor([[1.0, 2.0, 4.0], [1.0, 3.0, 2.0]]))[0, 1]
    assert correlation(x, y).item() == pytest.approx(kept.item())


def test_balance_of_segments_and_of_everything():
    """Two halves that use two experts each: a whole is balanced, a half has log 2 of log 4."""
    halves = torch.tensor([[0, 1]] * 8 + [[2, 3]] * 8)
    routing = routing_of(halves, 4)
    assert global_balance(activation_counts(routing).sum(0)).item() == pytest.approx(1.0)
    assert local_balance(segment_histogram(routing, 16).sum(0), 2).item() == pytest.approx(1.0)
    apart = routing_of(halves.view(1, 2, 8, 2), 4)
    assert local_balance(segment_histogram(apart, 8).sum(0), 2).item() == pytest.approx(0.5)


def test_resamples_keep_the_size_of_each_stratum():
    strata = torch.tensor([0, 1, 0, 1, 1])
    weights = resamples(strata, 200, generator(0, "bootstrap"))
    assert torch.equal(weights[:, strata == 0].sum(1), torch.full((200,), 2.0, dtype=torch.float64))
    assert torch.equal(weights[:, strata == 1].sum(1), torch.full((200,), 3.0, dtype=torch.float64))
    assert weights[:, 0].unique().tolist() == [0.0, 1.0, 2.0]


def test_the_basic_interval_mirrors_the_quantiles():
    draws = torch.arange(101, dtype=torch.float64)
    assert basic_interval(40.0, draws, level=0.9) == pytest.approx((2 * 40 - 95, 2 * 40 - 5))


def test_analyse_reads_the_routing_alone():
    found = analyse(independent(3, 16, 128, 16, 2))
    assert found["srp/16"] == pytest.approx(found["srp/16/independent"], abs=0.005)
    assert found["srp/floor"] == pytest.approx(4 / 18)
    assert found["srp/16/layers"] == pytest.approx(found["srp/16"], abs=0.005)
    assert found["sch/1"] < found["sch/2"] < found["sch/4"] < 1
    assert found["balance/local"] < found["balance/global"] == pytest.approx(1.0, abs=0.01)
    same = analyse(routing_of(torch.tensor([3, 1]).expand(3, 4, 128, 2), 16))
    assert same["srp/64"] == pytest.approx(1.0)
    assert same["sch/1"] == pytest.approx(1.0)
