"""The study of local routing consistency: its arms run, repeat and report what the gates read; its own gates decide."""

import math
import pickle

import pytest
import torch

from policyopt.models.mixture_of_experts import Routing
from policyopt.studies.claim import Results
from policyopt.studies.moe_lrc import BASE, Variant, claim, equal_within, next_token_loss, not_below, specialisation


@pytest.mark.parametrize("arm", ["shared", "policy-optimized"])
def test_arms_run_in_workers_and_report_what_gates_read(arm):
    metrics = pickle.loads(pickle.dumps(claim.arms[arm]))(100, True)
    assert {gate.metric for gate in claim.gates if arm in gate.arms} <= set(metrics)


def test_an_arm_repeats():
    first, again = (claim.arms["sequence"](100, True) for _ in range(2))
    assert str(first) == str(again)  # NaN included
    assert first["eval/loss"] != claim.arms["sequence"](101, True)["eval/loss"]


def test_scored_seeds_are_no_tuning_seeds():
    assert len(claim.seeds) == 3
    assert not set(claim.seeds) & {100, 101}


def test_balance_inside_sequences_differs_from_balance_over_the_batch_by_the_grouping_alone():
    logits = torch.randn(4 * 8, BASE.experts, generator=torch.Generator().manual_seed(0))
    batch, sequence = Variant(z=0.0), Variant(z=0.0, per_sequence=True)
    assert sequence.routers(logits, 1) == batch.routers(logits, 4)
    apart = sum(batch.routers(part, 1) for part in logits.view(4, 8, -1)) / 4
    assert sequence.routers(logits, 4).item() == pytest.approx(apart.item())
    assert sequence.routers(logits, 4) > batch.routers(logits, 4)


def test_next_token_loss_of_a_uniform_model():
    assert (
        next_token_loss(torch.zeros(2, 5, 7), torch.ones(2, 5, dtype=torch.int64)).tolist()
        == [pytest.approx([math.log(7)] * 4)] * 2
    )


def test_specialisation_prefers_the_kind_of_token_that_routes():
    """Routing by the input token: each expert owns its tokens wholly, and the next token says little."""
    tokens = torch.randint(4, (8, 400), generator=torch.Generator().manual_seed(0))
    routing = Routing(experts=tokens[None, ..., None], number=4, valid=torch.ones_like(tokens, dtype=torch.bool))
    kinds = {"input": tokens, "next": tokens.roll(-1, 1)}
    found = specialisation(routing, torch.arange(8), kinds, 4)
    assert found["specialisation/input"] == pytest.approx(1.0)
    assert found["specialisation/next"] < 0.4


def results(a, b):
    return Results(arms={"a": {i: {"x": v} for i, v in enumerate(a)}, "b": {i: {"x": v} for i, v in enumerate(b)}})


@pytest.mark.parametrize(
    ("a", "passed"), [([1.001, 1.0, 1.002], True), ([1.1, 1.11, 1.12], False), ([1.0, 1.02, 0.98], None)]
)
def test_equal_within_asks_for_the_whole_interval(a, passed):
    assert equal_within("x", "a", "b", 0.02).test(results(a, [1.0, 1.0, 1.0])).passed is passed


@pytest.mark.parametrize(
    ("a", "passed"), [([1.0, 1.1, 0.95], True), ([2.0, 2.1, 2.2], True), ([0.5, 0.51, 0.52], False)]
)
def test_not_below_fails_only_where_the_interval_lies_below(a, passed):
    assert not_below("x", "a", "b").test(results(a, [1.0, 1.0, 1.0])).passed is passed
