"""BQ-NCO: the quotient, its invariances, suffix imitation, decoding."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from policyopt.learners.imitation import Imitation, cross_entropy, expert_distribution
from policyopt.learners.update import Adam, Cosine
from policyopt.methods import bq_nco
from policyopt.methods.bq_nco import Nearest, Quotient, StepDecay, Whole, beam_search, nearest
from policyopt.models.pointer import Pointer, PointerPolicy, masked_log_softmax
from policyopt.problems.decision.construction import construct, solved
from policyopt.problems.decision.knapsack import Knapsack
from policyopt.problems.decision.routing import CVRP, TSP, Orienteering, PartialRoutes, PartialTour
from policyopt.types import Budget, Clock, generator

SMALL = {"dim": 16, "layers": 2, "heads": 2, "feedforward": 32}
TINY = {"train_instances": 10, "test_instances": 4}
QUOTIENT = Quotient()
PROBLEMS = [
    TSP(size=7, test_sizes=(7,), **TINY),
    CVRP(size=7, test_sizes=(7,), capacity=12, **TINY),
    Orienteering(size=7, test_sizes=(7,), **TINY),
    Knapsack(size=8, test_sizes=(8,), **TINY),
]
IDS = [problem.name for problem in PROBLEMS]


def imitation(view=QUOTIENT, updates=20):
    return Imitation(
        policy=Pointer(view=view, **SMALL),
        batch=16,
        optimizer=Adam(learning_rate=5e-3, schedule=Cosine()),
        updates=updates,
    )


def policy_with_attention(problem, view=QUOTIENT, seed=0) -> PointerPolicy:
    """Random weights, the ReZero scalars away from zero so that candidates see each other."""
    policy = Pointer(view=view, **SMALL).build(problem.instances(1, problem.size, generator(0, "shape")), seed)
    for block in policy.scorer.blocks:
        block.alpha.data.fill_(0.5)
    return policy


def toured(nodes, path):
    return PartialTour(nodes=nodes, path=torch.tensor([path] * len(nodes)), batch_size=[len(nodes)])


def test_quotient_forgets_the_visited_order():
    nodes = torch.rand(3, 8, 2, generator=generator(0, "nodes"))
    one, other = toured(nodes, [2, 5, 0, 7]), toured(nodes, [2, 0, 5, 7])
    for key in ("features", "legal", "choice"):
        assert torch.equal(one.tail()[key], other.tail()[key])
    policy = policy_with_attention(PROBLEMS[0])
    assert torch.equal(policy.log_probabilities(one.tail()), policy.log_probabilities(other.tail()))


def test_quotient_forgets_where_the_visited_nodes_were_and_the_whole_view_does_not():
    nodes = torch.rand(1, 8, 2, generator=generator(0, "nodes"))
    moved = nodes.clone()
    moved[:, 5] = 0.123
    for view, same in ((Quotient(), True), (Whole(), False)):
        policy = policy_with_attention(PROBLEMS[0], view)
        scores = [policy.log_probabilities(view(toured(place, [2, 5, 0, 7]))) for place in (nodes, moved)]
        assert torch.equal(*scores) is same


def test_permuting_the_unvisited_permutes_the_scores():
    seen = toured(torch.rand(4, 9, 2, generator=generator(0, "nodes")), [3, 1]).tail()
    order = torch.tensor([0, 4, 2, 7, 1, 5, 3, 6, 8])
    permuted = {key: value[:, order] for key, value in seen.items()}
    policy = policy_with_attention(PROBLEMS[0])
    straight, shuffled = policy.log_probabilities(seen), policy.log_probabilities(permuted)
    assert straight.isfinite().sum() == 4 * 7
    assert straight[:, 1:-1].std() > 1e-3
    torch.testing.assert_close(straight[:, order], shuffled, atol=1e-5, rtol=0)


def best_completion(partial) -> float:
    left = partial.tail()["choice"][0, 1:-1].tolist()
    returns = []
    for order in itertools.permutations(left):
        following, total = partial, 0.0
        for node in order:
            following, reward = following.step(torch.tensor([node]))
            total += float(reward)
        returns.append(total)
    return max(returns)


def test_rewards_telescope_and_the_tail_keeps_the_value():
    square = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]])
    assert best_completion(toured(square, [0])) == pytest.approx(-4.0)
    assert best_completion(toured(square, [0, 1])) == pytest.approx(-3.0)
    assert best_completion(toured(square, [0, 1, 2])) == pytest.approx(-2.0)
    partial, total = toured(square, [0]), 0.0
    for node in (1, 2, 3):
        assert not partial.done.any()
        partial, reward = partial.step(torch.tensor([node]))
        total += float(reward)
    assert partial.done.all()
    assert total == pytest.approx(-4.0)
    nodes = torch.rand(1, 6, 2, generator=generator(0, "nodes"))
    one, other = toured(nodes, [0, 2, 4, 1]), toured(nodes, [0, 4, 2, 1])
    assert best_completion(one) == best_completion(other)


def test_choosing_a_node_makes_it_the_origin():
    nodes = torch.rand(1, 5, 2, generator=generator(0, "nodes"))
    a, b, c, d, e = 4, 0, 2, 3, 1
    partial = PartialTour(nodes=nodes, path=torch.tensor([[e, a]]), batch_size=[1])
    assert partial.tail()["choice"].tolist() == [[a, b, c, d, e]]
    following, _ = partial.step(torch.tensor([d]))
    assert following.tail()["choice"].tolist() == [[d, b, c, e]]
    torch.testing.assert_close(following.tail()["features"][0, :, :2], nodes[0, [d, b, c, e]])
    assert following.tail()["features"][0, :, 2:].tolist() == [[1, 0], [0, 0], [0, 0], [0, 1]]
    assert following.tail()["legal"].tolist() == [[False, True, True, False]]


def test_vehicle_routes_mask_and_refill():
    partial = PartialRoutes(
        nodes=torch.rand(1, 4, 2, generator=generator(0, "nodes")),
        demand=torch.tensor([[0, 4, 2, 7]]),
        capacity=torch.tensor([10]),
        remaining=torch.tensor([3]),
        path=torch.tensor([[0, 3]]),
        batch_size=[1],
    )
    seen = partial.tail()
    assert seen["legal"].view(4, 2).tolist() == [[False, False], [False, True], [True, True], [False, False]]
    assert seen["choice"][0, 3] == 2 * 1 + 1 == 3
    assert seen["features"][0, :, 2].tolist() == pytest.approx([0.7, 0.4, 0.2, 0.0])
    assert seen["features"][0, :, 3].tolist() == pytest.approx([0.3] * 4)
    following, reward = partial.step(torch.tensor([3]))
    assert following.remaining.tolist() == [6]
    place = partial.nodes[0]
    detour = (place[3] - place[0]).norm() + (place[0] - place[1]).norm()
    assert float(reward) == pytest.approx(-float(detour))


def test_set_target_is_uniform_over_what_is_left_of_the_optimum():
    choice, experts = torch.tensor([[10, 11, 12, 13, 14]]), torch.tensor([[12, 10, 11, -1, -1]])
    target = expert_distribution(choice, experts)
    torch.testing.assert_close(target, torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0.0, 0.0]]))
    logp = masked_log_softmax(torch.zeros(1, 5), torch.ones(1, 5, dtype=torch.bool))
    assert float(cross_entropy(logp, target)) == pytest.approx(math.log(5), abs=1e-6)


def test_without_attention_at_first_scores_depend_on_own_features_alone():
    policy = Pointer(view=Quotient(), **SMALL).build(PROBLEMS[0].instances(1, 7, generator(0, "shape")), 0)
    features = torch.rand(2, 6, 4, generator=generator(0, "features"))
    changed = features.clone()
    changed[:, 3:] = 0.7
    one, other = policy.scorer(features), policy.scorer(changed)
    assert torch.equal(one[:, :3], other[:, :3])
    assert not torch.isclose(one[:, 3:], other[:, 3:]).any()
    assert not torch.equal(policy_with_attention(PROBLEMS[0]).scorer(features)[:, :3], one[:, :3])


@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_greedy_is_beam_search_of_width_one(problem):
    policy, start = policy_with_attention(problem), solved(problem, "test", problem.size).start
    greedy, returns = construct(start, policy.act, generator(0, "decode"))
    beam, found = beam_search(policy, start, 1)
    torch.testing.assert_close(found, returns)
    for one, other in zip(greedy.values(), beam.values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_a_beam_that_holds_everything_finds_the_reference(problem):
    small = replace(problem, size=4, test_sizes=(4,))
    start, _, best = solved(small, "test", 4)
    solution, returns = beam_search(policy_with_attention(small), start, 400)
    torch.testing.assert_close(returns, best, atol=1e-4, rtol=0)
    assert solution.done.all()


@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_demonstrations_cut_the_whole_batch_at_one_step(problem):
    lengths = set()
    for draw in range(25):
        partial, experts = problem.demonstrations(16, generator(draw, "demonstrations"))
        seen = partial.tail()
        target = expert_distribution(seen["choice"], experts)
        assert len(partial) == 16
        assert bool(seen["legal"][target > 0].all())
        torch.testing.assert_close(target.sum(1), torch.ones(16))
        lengths.add(seen["features"].shape[1])
    assert len(lengths) >= 3
    if isinstance(problem, TSP):
        assert lengths == {4, 5, 6, 7, 8}, "from two candidates to all of them, the first step included"


def test_forced_steps_are_not_imitated():
    for draw in range(25):
        partial, _ = PROBLEMS[0].demonstrations(4, generator(draw, "demonstrations"))
        assert int(partial.tail()["legal"].sum(1).min()) >= 2


def test_nearest_keeps_the_ends_and_the_nearest_legal_candidates():
    nodes = torch.tensor([[[0.0, 0.0], [0.9, 0.0], [0.1, 0.0], [0.3, 0.0], [0.2, 0.0], [0.5, 0.5]]])
    seen = nearest(toured(nodes, [5, 0]).tail(), 2)
    assert seen["choice"].tolist() == [[0, 2, 4, 5]]
    assert seen["legal"].tolist() == [[False, True, True, False]]
    torch.testing.assert_close(seen["features"][0, :, 0], torch.tensor([0.0, 0.1, 0.2, 0.5]))


def test_nearest_reaches_past_candidates_without_a_legal_choice():
    problem = Orienteering(size=20, max_length=0.8, **TINY)
    full = problem.instances(30, 20, generator(3, "nodes")).tail()
    seen = nearest(full, 1)
    assert bool(full["legal"][:, 1:].any(1).all())
    assert bool(seen["legal"].any(1).all())


@pytest.mark.parametrize("problem", PROBLEMS[:3], ids=IDS[:3])
def test_nearest_with_room_for_all_changes_nothing(problem):
    policy, start = policy_with_attention(problem), solved(problem, "test", problem.size).start
    restricted = PointerPolicy(policy.scorer, Nearest(view=Quotient(), count=problem.size))
    returns = [construct(start, who.act, generator(0, "decode"))[1] for who in (policy, restricted)]
    assert torch.equal(*returns)


def test_a_knapsack_has_no_nearest_items():
    with pytest.raises(ValueError, match="no distances"):
        Nearest()(PROBLEMS[3].instances(2, 8, generator(0, "items")))


def test_whole_view_shows_every_node_and_marks():
    nodes = torch.rand(1, 5, 2, generator=generator(0, "nodes"))
    seen = Whole()(toured(nodes, [2, 4, 0]))
    assert seen["features"][0, :, 2:].tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert seen["legal"].tolist() == [[False, True, False, True, False]]
    torch.testing.assert_close(seen["features"][..., :2], nodes)
    with pytest.raises(ValueError, match="PartialSelection has only its tail"):
        Whole()(PROBLEMS[3].instances(2, 8, generator(0, "items")))


def same(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_resume_equals_uninterrupted(problem):
    whole = imitation().learner(problem, seed=3)
    losses = [float(whole.step()["loss/imitation"]) for _ in range(6)]
    first = imitation().learner(problem, seed=3)
    for _ in range(3):
        first.step()
    resumed = imitation().learner(problem, seed=99)
    resumed.load_state_dict(first.state_dict())
    assert [float(resumed.step()["loss/imitation"]) for _ in range(3)] == losses[3:]
    assert same(resumed.state_dict(), whole.state_dict())


def test_imitation_comes_close_to_the_reference():
    problem = Knapsack(size=10, test_sizes=(10,), train_instances=100, test_instances=30)
    learner = imitation(updates=60).learner(problem, seed=0)
    before = problem.evaluate(learner.policy.act, generator(0, "evaluate"))["eval/gap"]
    for _ in range(60):
        learner.step()
    assert problem.evaluate(learner.policy.act, generator(0, "evaluate"))["eval/gap"] < min(0.05, before / 2)


def test_the_schedule_ends_with_the_budget_given():
    learner = imitation().learner(PROBLEMS[3], seed=0, budget=Budget(env_steps=48))
    for _ in range(3):
        learner.step()
    assert learner.clock.share == 1.0


def test_step_decay():
    decay = StepDecay(factor=0.5, every=10)
    assert [decay(Clock(step=step)) for step in (0, 9, 10, 25)] == [1.0, 1.0, 0.5, 0.25]


def test_default_is_the_papers_network():
    made = bq_nco.method()
    policy = made.policy.build(PROBLEMS[0].instances(1, 7, generator(0, "shape")), 0)
    assert 2.9e6 < sum(weight.numel() for weight in policy.parameters()) < 3.2e6
    assert made.updates == 500 * 976
    assert replace(bq_nco.whole(), policy=made.policy) == made
