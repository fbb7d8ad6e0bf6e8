"""Routing problems: references against exhaustive search, replay, masks, bad input."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch

from policyopt.problems.decision.construction import construct, solved
from policyopt.problems.decision.routing import CVRP, TSP, Orienteering, PartialTour, parse, reflected
from policyopt.types import generator

SMALL = {"train_instances": 8, "test_instances": 8}


def act_randomly(partial, memory, rng, greedy):
    seen = partial.tail()
    index = torch.multinomial(seen["legal"].float(), 1, generator=rng)
    return seen["choice"].gather(1, index)[:, 0], {}, memory


def length(nodes, order):
    place = nodes[list(order)]
    return float((place[1:] - place[:-1]).norm(dim=-1).sum())


def test_tours_are_optimal():
    problem = TSP(size=7, test_sizes=(7,), **SMALL)
    start, actions, returns = solved(problem, "test", 7)
    for nodes, tour, got in zip(start.nodes, actions, returns, strict=True):
        best = min(length(nodes, (0, *order, 0)) for order in itertools.permutations(range(1, 7)))
        assert sorted(tour.tolist()) == list(range(1, 7))
        assert float(-got) == pytest.approx(best, abs=1e-4)


def route_length(nodes, demand, capacity, order):
    """The cheapest way to cut one order of customers into routes (dynamic programming over the cuts)."""
    best = [0.0] + [float("inf")] * len(order)
    for end in range(1, len(order) + 1):
        for begin in range(end):
            if sum(int(demand[node]) for node in order[begin:end]) <= capacity:
                best[end] = min(best[end], best[begin] + length(nodes, (0, *order[begin:end], 0)))
    return best[-1]


def test_vehicle_routes_are_optimal_and_within_capacity():
    problem = CVRP(size=5, test_sizes=(5,), capacity=15, **SMALL)
    start, _, returns = solved(problem, "test", 5)
    for nodes, demand, got in zip(start.nodes, start.demand, returns, strict=True):
        best = min(route_length(nodes, demand, 15, order) for order in itertools.permutations(range(1, 6)))
        assert float(-got) == pytest.approx(best, abs=1e-4)


def test_the_least_filled_vehicle_goes_last_and_borders_of_routes_are_marked():
    problem = CVRP(size=12, **SMALL)
    start, actions, _ = solved(problem, "train", 12)
    for demand, steps in zip(start.demand, actions, strict=True):
        assert int(steps[0]) % 2 == 0, "from the depot there is no detour by the depot"
        routes = []
        for step in steps.tolist():
            if step % 2 or not routes:
                routes.append([])
            routes[-1].append(int(demand[step // 2]))
        loads = [sum(route) for route in routes]
        assert sum(loads) == int(demand.sum())
        assert loads == sorted(loads, reverse=True)
        assert max(loads) <= problem.capacity


def test_trips_collect_the_most_within_the_budget():
    problem = Orienteering(size=5, test_sizes=(5,), max_length=1.5, **SMALL)
    start, actions, returns = solved(problem, "test", 5)
    for nodes, prize, trip, got in zip(start.nodes, start.prize, actions, returns, strict=True):
        orders = (o for k in range(1, 6) for o in itertools.permutations(range(1, 6), k))
        best = max(float(prize[list(o)].sum()) for o in orders if length(nodes, (0, *o, 0)) <= 1.5)
        assert length(nodes, (0, *trip[trip >= 0].tolist(), 0)) <= 1.5 + 1e-6
        assert float(got) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("problem", [TSP(**SMALL), CVRP(**SMALL), Orienteering(**SMALL)], ids=lambda p: p.name)
def test_replaying_the_reference_gives_its_return_also_when_varied(problem):
    start, actions, returns = solved(problem, "train", 20)
    varied, orders = problem.vary(start, actions, generator(0, "vary"))
    for instances, solutions in ((start, actions), (varied, orders)):
        for row in range(len(returns)):
            partial, total = instances[row : row + 1], 0.0
            for action in solutions[row][solutions[row] >= 0]:
                partial, reward = partial.step(action[None])
                total += float(reward)
            if not bool(partial.done) and not isinstance(problem, Orienteering):
                partial, reward = partial.step(partial.tail()["choice"][:, 1])
                total += float(reward)
            assert total == pytest.approx(float(returns[row]), abs=1e-4)


def test_variation_turns_every_city_into_the_first_and_both_directions():
    problem = TSP(size=6, **SMALL)
    start, actions, _ = solved(problem, "train", 6)
    one = torch.zeros(400, dtype=torch.long)
    varied, steps = problem.vary(start[one], actions[one], generator(0, "vary"))
    assert steps.tolist() == [[1, 2, 3, 4]] * 400
    kinds = {tuple((place * 1e4).round().flatten().tolist()) for place in varied.nodes}
    assert len(kinds) == 6 * 2 * 8


def test_reflections_keep_distances():
    nodes = torch.rand(100, 5, 2, generator=generator(0, "nodes"))
    torch.testing.assert_close(
        torch.cdist(reflected(nodes, generator(0, "reflect")), nodes * 0 + 0.5).sort(1).values,
        torch.cdist(nodes, nodes * 0 + 0.5).sort(1).values,
    )
    assert len({tuple(kind) for kind in (reflected(nodes[:1].expand(99, 5, 2), generator(1, "r"))[:, 0]).tolist()}) == 8


@pytest.mark.parametrize("problem", [TSP(**SMALL), CVRP(**SMALL), Orienteering(**SMALL)], ids=lambda p: p.name)
def test_random_construction_is_valid_and_no_better_than_the_reference(problem):
    start = solved(problem, "test", 20).start
    solution, returns = construct(start, act_randomly, generator(0, "act"))
    assert bool(solution.done.all())
    assert bool((problem.gaps(20, returns) > 0).all())
    if isinstance(problem, Orienteering):
        home = (solution.nodes[torch.arange(8), solution.origin] - solution.nodes[:, 0]).norm(dim=-1)
        assert bool((solution.remaining >= home - 1e-5).all())
    elif isinstance(problem, CVRP):
        assert bool((solution.path.sort(1).values == torch.arange(21)).all())
        assert bool((solution.remaining >= 0).all())


def test_evaluation_reports_gaps_by_size():
    problem = TSP(test_sizes=(5, 9), **SMALL)
    found = problem.evaluate(act_randomly, generator(0, "act"))
    assert set(found) == {"eval/return", "eval/gap", "eval/gap_5", "eval/gap_9"}
    assert found["eval/gap"] == pytest.approx((found["eval/gap_5"] + found["eval/gap_9"]) / 2)


def test_training_and_held_out_instances_differ_and_are_the_same_every_time():
    problem = TSP(**SMALL)
    train, test = (solved(problem, split, 20).start.nodes for split in ("train", "test"))
    assert not bool((train[:, None] == test[None]).all(-1).all(-1).any())
    solved.cache_clear()
    assert torch.equal(solved(problem, "train", 20).start.nodes, train)


def test_an_illegal_action_is_refused():
    tour = PartialTour(nodes=torch.rand(2, 5, 2), path=torch.tensor([[0, 1], [0, 2]]), batch_size=[2])
    with pytest.raises(ValueError, match="instance 1 has visited node 2 already"):
        tour.step(torch.tensor([2, 2]))
    routes = CVRP(capacity=9).instances(1, 4, generator(0, "nodes")).replace(remaining=torch.tensor([0]))
    with pytest.raises(ValueError, match="instance 0: the demand exceeds the load"):
        routes.step(torch.tensor([2]))


@pytest.mark.parametrize(
    "wrong", [{"size": 3}, {"test_sizes": (20, 2)}, {"train_instances": 0}, {"test_instances": -1}], ids=str
)
def test_problems_that_cannot_be(wrong):
    with pytest.raises(ValueError, match="sizes must be at least 4 and instance counts positive"):
        TSP(**wrong)


def test_a_budget_that_reaches_nothing_is_refused():
    with pytest.raises(ValueError, match="loosen the budget"):
        solved(Orienteering(max_length=1e-3, **SMALL), "train", 5)


@pytest.mark.parametrize(("problem", "package"), [(TSP(size=5), "elkai"), (CVRP(size=5), "pyvrp")])
def test_a_missing_solver_is_named(problem, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install policyopt\[decision\]"):
        problem.solve(problem.instances(1, 5, generator(0, "nodes")))


def test_problems_by_name():
    assert parse("tsp,size=30,test_sizes=30-60") == TSP(size=30, test_sizes=(30, 60))
    assert parse("op,max_length=3") == Orienteering(max_length=3.0)
    assert parse("cvrp,capacity=40,seed=2") == CVRP(capacity=40, seed=2)
    with pytest.raises(ValueError, match="cvrp"):
        parse("cvpr")
    with pytest.raises(ValueError, match="test_sizes"):
        parse("tsp,test_size=30")
