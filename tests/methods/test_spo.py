"""SPO (arXiv 2505.23564): segments, edges and the masked objective by hand, their identities and limits, and its variants."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from policyopt import registry
from policyopt.credit.groups import GroupMean, group_mean
from policyopt.learners.annotators import Reference
from policyopt.methods import spo
from policyopt.methods.spo import (
    CutPoints,
    EdgeMemory,
    Edges,
    Lengths,
    Partition,
    Pieces,
    SegmentObjective,
    Steps,
    edge_advantage,
    segment_advantage,
)
from policyopt.models.language import LanguagePolicy
from policyopt.objectives.divergence import ReferenceK3
from policyopt.objectives.policy_gradient import PolicyGradient, RatioClip, TokenMean
from policyopt.problems.language.arithmetic import Arithmetic
from policyopt.rollouts.kept import columns_of
from policyopt.rollouts.tree import Fixed
from policyopt.types import Clock, Outputs, Rollouts, generator

PROBABILITY = torch.tensor([[0.95, 0.5, 0.99, 0.3, 0.8, 0.97, 0.6, 0.99]])


def rows(logp: Tensor, **columns: Any) -> Rollouts:
    """Rows in which every step was chosen, with log-probabilities [N, T]."""
    count, steps = logp.shape
    given: dict[str, Any] = {
        "actions": torch.zeros(count, steps, dtype=torch.int64),
        "mask": torch.ones(count, steps, dtype=torch.bool),
        "behaviour_logp": logp,
        "old_logp": logp,
        "length": torch.full((count,), steps),
        **columns,
    }
    return Rollouts(**given, batch_size=[count])


# -- chains


def test_cuts_and_advantages_by_hand(policy: LanguagePolicy) -> None:
    batch = rows(PROBABILITY.log())
    uncertain = PROBABILITY < 0.9
    begins = Partition(interval=2)(batch, uncertain, policy)
    assert begins.nonzero().tolist() == [[0, 1], [0, 4]]
    value = torch.zeros(1, 8)
    value[0, 1], value[0, 4] = 0.4, 0.2
    advantage = segment_advantage(begins, value, torch.tensor([1.0]), batch.mask)
    torch.testing.assert_close(advantage, torch.tensor([[0.0, -0.2, -0.2, -0.2, 0.8, 0.8, 0.8, 0.8]]))
    prepared = SegmentObjective(penalty=None).prepare(batch.replace(advantage=advantage, weight=uncertain.float()))
    want = [[0.0, -0.8660254, 0.0, -0.8660254, 0.8660254, 0.0, 0.8660254, 0.0]]
    torch.testing.assert_close(prepared.advantage, torch.tensor(want), atol=1e-6, rtol=0)


def test_segments_add_up_to_the_reward_minus_the_first_value() -> None:
    rng = torch.Generator().manual_seed(0)
    begins = torch.rand(16, 12, generator=rng) < 0.3
    begins[0] = False
    value, reward = torch.rand(16, 12, generator=rng), torch.rand(16, generator=rng)
    found = segment_advantage(begins, value, reward, torch.ones(16, 12, dtype=torch.bool))
    total = (found * begins).sum(1)  # one token of each segment
    first = begins.float().argmax(1)
    want = reward - value[torch.arange(16), first]
    torch.testing.assert_close(total[1:], torch.where(begins.any(1), want, 0.0)[1:])
    assert not found[0].any()


def test_one_token_a_segment_gives_each_token_its_own_difference() -> None:
    value = torch.tensor([[0.3, 0.5, 0.1]])
    found = segment_advantage(torch.ones(1, 3).bool(), value, torch.tensor([1.0]), torch.ones(1, 3).bool())
    torch.testing.assert_close(found, torch.tensor([[0.2, -0.4, 0.9]]))


def test_padding_gets_nothing() -> None:
    mask = torch.tensor([[True, True, False]])
    found = segment_advantage(torch.tensor([[True, False, False]]), torch.full((1, 3), 0.25), torch.ones(1), mask)
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.75, 0.0]]))


def test_partitions(policy: LanguagePolicy) -> None:
    ids = [policy.tokenizer("ab\ncd\n\ne")["input_ids"]]
    batch = rows(torch.zeros(1, 8), actions=torch.tensor(ids))
    nothing = torch.zeros(1, 8, dtype=torch.bool)

    def cuts(partition: Partition) -> list[int]:
        return [int(step) for _, step in partition(batch, nothing, policy).nonzero()]

    assert cuts(Partition()) == []
    assert cuts(Lengths(interval=3)) == [0, 3, 6]
    assert cuts(Pieces(interval=3)) == [0, 3, 6]
    assert cuts(Pieces(interval=2)) == [0, 4]
    assert cuts(Steps()) == [0, 3, 6, 7]
    assert cuts(Steps(interval=2)) == [0, 6]


def test_monte_carlo_values_stand_at_the_cuts() -> None:
    """Every reward is 1, so every value is: only the tokens before the first cut could differ, and all advantages are 0."""
    problem = Arithmetic(terms=(2, 4), max_new_tokens=12, reward_weights={})
    policy = registry.policy("tiny", problem, seed=0, device="cpu")
    collected = CutPoints(prompts=3, samples=2, continuations=2)(policy, problem, Clock(seed=0))
    assert not collected.batches["rollouts"].advantage.any()
    real = Arithmetic(terms=6, max_new_tokens=24)
    found = CutPoints(prompts=8, samples=4, continuations=4)(policy, real, Clock(seed=0))
    batch = found.batches["rollouts"]
    assert batch.advantage.any()
    assert torch.equal(batch.weight > 0, batch.mask & (batch.old_logp.exp() < 0.9))
    assert float(found.metrics["cost/tokens"]) > int(batch.length.sum())
    steps = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    assert bool(torch.isin(batch.advantage.abs(), steps).all())


# -- trees


def test_edges_by_hand() -> None:
    # root 0, nodes 1 and 2, leaves [[1, 0], [0, 0]]
    value = torch.tensor([0.25, 0.5, 0.0, 1.0, 0.0, 0.0, 0.0])
    parent = torch.tensor([-1, 0, 0, 1, 1, 2, 2])
    assert edge_advantage(value, parent).tolist() == [0.0, 0.25, -0.25, 0.5, -0.5, 0.0, 0.0]
    normalized = edge_advantage(value, parent, normalized=True)
    torch.testing.assert_close(normalized, torch.tensor([0.0, 1, -1, 1, -1, 0, 0]))


PROBLEM = Arithmetic(terms=(3, 6), operations="+", max_new_tokens=24)


@pytest.fixture
def trained() -> LanguagePolicy:
    found: LanguagePolicy = registry.policy("tiny", PROBLEM, seed=0, device="cpu")
    return found


def gather(policy: LanguagePolicy, **fields: Any) -> tuple[Rollouts, dict[str, Any]]:
    collector = Edges(**{"prompts": 6, "branching": Fixed(factors=(4, 4), segment=4), "most": 1000, **fields})
    collected = collector(policy, PROBLEM, Clock(seed=2), collector.memory())
    return collected.batches["rollouts"], collected.metrics


def test_siblings_add_up_to_nothing(trained: LanguagePolicy) -> None:
    batch, _ = gather(trained)
    advantage = batch.scores["advantage"]
    assert bool((advantage != 0).all()), "edges without advantage are dropped"
    total = group_mean(advantage, batch.group)
    torch.testing.assert_close(total, torch.zeros_like(total), atol=1e-6, rtol=0)


def test_a_tree_of_one_level_is_grpo_without_the_deviation(trained: LanguagePolicy) -> None:
    batch, metrics = gather(trained, branching=Fixed(factors=(8,)))
    normalized, _ = gather(trained, branching=Fixed(factors=(8,)), normalized=True)
    texts = trained.decode(batch.actions, batch.length)
    reward = PROBLEM.score(batch.prompt_id.tolist(), texts)["reward"]
    torch.testing.assert_close(batch.scores["advantage"], reward - group_mean(reward, batch.group))
    p = group_mean(reward, batch.group)
    torch.testing.assert_close(normalized.scores["advantage"], (reward - p) / (p * (1 - p)).sqrt(), atol=1e-5, rtol=0)
    assert 0.0 < float(metrics["reward/mean"]) < 1.0
    reference = GroupMean()(batch.replace(scores=TensorDict({"reward": reward}, [len(batch)])))
    torch.testing.assert_close(batch.advantage, reference.advantage)


def test_where_no_edge_teaches_anything_the_batch_is_one_that_teaches_nothing(trained: LanguagePolicy) -> None:
    collector = Edges(prompts=2, branching=Fixed(factors=(2, 2), segment=3))
    dull = replace(PROBLEM, reward_weights={})
    batch = collector(trained, dull, Clock(seed=2), collector.memory()).batches["rollouts"]
    assert len(batch) == 1 and not batch.advantage.any()
    learner = spo.tree().learner(dull, trained, seed=0)
    assert float(learner.step()["loss/policy"]) == 0.0


def edges(prompts: list[int], tag: float) -> Rollouts:
    count = len(prompts)
    column = torch.full((count, 2), tag)
    return rows(
        column,
        group=torch.arange(count),
        prompt_id=torch.tensor(prompts),
        prompt=torch.zeros(count, 3, dtype=torch.int64),
        prompt_length=torch.full((count,), 3),
        advantage=column,
        scores=TensorDict({"advantage": column[:, 0]}, [count]),
    )


def test_edges_wait_for_their_turn_and_grow_too_old() -> None:
    memory, rng = EdgeMemory(), generator(0, "edges")
    first = memory.exchange(edges([7] * 5 + [9] * 2, 0.0), 0, 2, 2, rng)
    assert first.prompt_id.tolist().count(7) == 2 and first.prompt_id.tolist().count(9) == 2
    assert len(memory.born) == 3
    copy = EdgeMemory()
    copy.load_state_dict(memory.state_dict())
    again = [m.exchange(edges([8], 1.0), 1, 2, 2, generator(0, "x")) for m in (memory, copy)]
    assert sorted(again[0].prompt_id.tolist()) == [7, 7, 8]
    one, other = (columns_of(batch) for batch in again)
    assert all(torch.equal(column, other[name]) for name, column in one.items() if isinstance(column, Tensor))
    assert len(memory.born) == 1
    late = memory.exchange(edges([8], 2.0), 3, 2, 2, rng)
    assert late.prompt_id.tolist() == [8], "the last edge of prompt 7 is three steps old"
    assert memory.edges is None and len(memory.born) == 0


# -- the objective


def policy_rows(policy: LanguagePolicy, weight: Any) -> Rollouts:
    torch.manual_seed(0)
    actions = torch.randint(4, 60, (4, 5))
    batch = rows(
        torch.zeros(4, 5),
        actions=actions,
        group=torch.arange(4),
        prompt=torch.randint(4, 60, (4, 3)),
        prompt_length=torch.full((4,), 3),
        advantage=torch.randn(4, 5),
        weight=weight,
        ref_logp=torch.full((4, 5), -4.0),
    )
    with torch.no_grad():
        logp = policy.evaluate(batch).logp
    return batch.replace(old_logp=logp, behaviour_logp=logp)


def gradient(objective: PolicyGradient, policy: LanguagePolicy, batch: Rollouts) -> tuple[Tensor, Tensor]:
    """Value, and derivative by each step's log-probability."""
    prepared = objective.prepare(batch)
    logp = batch.old_logp.clone().requires_grad_()
    if objective.measures:
        prepared = objective.measure(logp.detach(), prepared, generator(0, "measure"))
    loss = objective(Outputs(logp=logp), prepared).value
    return loss.detach(), torch.autograd.grad(loss, logp)[0]


def test_without_mask_whitening_and_penalty_it_is_ppo_with_a_token_mean(policy: LanguagePolicy) -> None:
    batch = policy_rows(policy, torch.ones(4, 5))
    plain = PolicyGradient(stabilization=RatioClip(), aggregation=TokenMean())
    bare = SegmentObjective(stabilization=RatioClip(), penalty=None, whiten=False)
    for mine, want in zip(gradient(bare, policy, batch), gradient(plain, policy, batch), strict=True):
        torch.testing.assert_close(mine, want)
    torch.testing.assert_close(gradient(bare, policy, batch)[1], -batch.advantage / 20)


def test_steps_outside_of_the_mask_have_exactly_no_gradient(policy: LanguagePolicy) -> None:
    weight = (torch.arange(20).view(4, 5) % 3 == 0).float()
    batch = policy_rows(policy, weight)
    objective = SegmentObjective(stabilization=RatioClip(), penalty=ReferenceK3(coefficient=0.5))
    _, slope = gradient(objective, policy, batch)
    assert not slope[weight == 0].any()
    assert bool((slope[weight == 1] != 0).all())


def test_the_penalty_is_summed_over_a_row_and_averaged_over_rows(policy: LanguagePolicy) -> None:
    weight = torch.zeros(4, 5)
    weight[0], weight[1, :2] = 1.0, 1.0
    batch = policy_rows(policy, weight).replace(advantage=torch.zeros(4, 5))
    value, _ = gradient(SegmentObjective(penalty=ReferenceK3(coefficient=0.5)), policy, batch)
    difference = -4.0 - batch.old_logp
    k3 = difference.exp() - difference - 1
    torch.testing.assert_close(value, 0.5 * (k3 * weight).sum() / 4)


def test_without_an_uncertain_step_all_count(policy: LanguagePolicy) -> None:
    objective = SegmentObjective(penalty=None)
    none, every = (gradient(objective, policy, policy_rows(policy, w)) for w in (torch.zeros(4, 5), torch.ones(4, 5)))
    torch.testing.assert_close(none[1], every[1])
    assert none[1].any()


def test_a_minibatch_far_from_what_sampled_it_is_left_out(policy: LanguagePolicy) -> None:
    batch = policy_rows(policy, torch.ones(4, 5))
    objective = SegmentObjective(whiten=False)
    for shift, kept in ((2.0, True), (2.4, False)):  # mean ratios 7.4 and 11
        far = batch.replace(old_logp=batch.old_logp - shift)
        prepared = objective.prepare(far)
        measured = objective.measure(batch.old_logp, prepared, generator(0, "measure"))
        assert bool(measured.share.any()) == kept


def test_every_variant_steps_and_repeats() -> None:
    problem = Arithmetic(terms=(3, 5), operations="+", max_new_tokens=16)
    for name in spo.VARIANTS:
        method = getattr(spo, name)()
        small: dict[str, Any] = {"prompts": 4}
        if isinstance(method.collector, CutPoints):
            small |= {"samples": 2, "continuations": 2}
        else:
            small |= {"branching": Fixed(factors=(2, 2, 2), segment=3)}
        method = replace(method, collector=replace(method.collector, **small), minibatches=1)
        assert any(isinstance(part, Reference) for part in method.annotators)
        losses = []
        for _ in range(2):
            learner = method.learner(problem, registry.policy("tiny", problem, seed=0, device="cpu"), seed=3)
            metrics = [learner.step(), learner.step()]
            losses.append([float(m["loss/policy"]) for m in metrics])
            assert float(metrics[1]["loss/reference_k3"]) >= 0.0
        assert losses[0] == losses[1]


def test_a_killed_run_goes_on_with_the_edges_that_wait() -> None:
    problem = Arithmetic(terms=(3, 5), operations="+", max_new_tokens=16)
    collector = Edges(prompts=4, branching=Fixed(factors=(4, 4), segment=3), most=3)
    method = replace(spo.tree(), collector=collector)

    def fresh() -> Any:
        return method.learner(problem, registry.policy("tiny", problem, seed=0, device="cpu"), seed=3)

    whole = fresh()
    whole.step()
    state = deepcopy(whole.state_dict())
    resumed = fresh()
    resumed.load_state_dict(state)
    assert len(resumed.memories["collector"].born) > 0
    assert float(whole.step()["loss/policy"]) == float(resumed.step()["loss/policy"])


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Edges(most=0)
