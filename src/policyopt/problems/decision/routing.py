"""Routing problems in the unit square: the travelling salesman, capacitated vehicle routing, orienteering.

Each is recursive (arXiv 2301.03313): what remains after some steps is a path problem from the current node over the
unvisited nodes to the final one, with one more number where a resource is used up. Reference solutions: LKH (package
`elkai`) for tours, iterated local search (package `pyvrp`) for the other two. Axes as in ``construction``; the first
two features of a candidate are its coordinates, the last two mark the current node and the destination.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorClass
from torch import Tensor

from policyopt.problems.decision.construction import Construction, Observation, read, remaining
from policyopt.problems.language.base import choose

RESOLUTION = 100_000  # the solvers count in whole numbers; finer ones exceed PyVRP's penalties


def rows(values: Tensor, index: Tensor) -> Tensor:
    """``values`` [N, C, …] at ``index`` [N, M] → [N, M, …]."""
    chosen: Tensor = values[torch.arange(len(values))[:, None], index]
    return chosen


def distance(nodes: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Euclidean distances between nodes [N, C, 2] by index: start [N], end [N] → [N]."""
    row = torch.arange(len(nodes))
    step: Tensor = nodes[row, start] - nodes[row, end]
    return step.square().sum(-1).sqrt()


def path_observation(nodes: Tensor, index: Tensor, *columns: Tensor) -> Observation:
    """A path problem over candidates ``index`` [N, M], current node first, destination last; more columns [N, M]."""
    place = rows(nodes, index)
    ends = torch.zeros(*index.shape, 2)
    ends[:, 0, 0] = ends[:, -1, 1] = 1.0
    middle = torch.ones_like(index, dtype=torch.bool)
    middle[:, 0] = middle[:, -1] = False
    features = torch.cat([place, *(column[..., None] for column in columns), ends], -1)
    return {
        "features": features,
        "legal": middle,
        "choice": index,
        "distance": (place - place[:, :1]).norm(dim=-1),
    }


def reflected(nodes: Tensor, rng: torch.Generator) -> Tensor:
    """Nodes [N, C, 2] under a random one of the square's eight symmetries for each instance; lengths are unchanged."""
    flip, swap = torch.rand(len(nodes), 1, 2, generator=rng) < 0.5, torch.rand(len(nodes), 1, 1, generator=rng) < 0.5
    nodes = torch.where(flip, 1.0 - nodes, nodes)
    return torch.where(swap, nodes.flip(-1), nodes)


def check_unvisited(path: Tensor, node: Tensor) -> None:
    """Raises ValueError where a node [N] is in the path [N, t] already."""
    again = (path == node[:, None]).any(1)
    if bool(again.any()):
        row = int(again.nonzero()[0])
        raise ValueError(f"instance {row} has visited node {int(node[row])} already: choose among the legal actions")


class PartialTour(TensorClass["nocast"]):  # type: ignore[type-arg, name-defined]
    """Tours so far: nodes [N, C, 2]; path [N, t], the nodes visited in order. An action is a node."""

    nodes: Tensor
    path: Tensor

    @property
    def done(self) -> Tensor:
        return torch.full((len(self.path),), self.path.shape[1] == self.nodes.shape[1])

    def tail(self) -> Observation:
        """The path problem from the current node over the unvisited ones to the start: F = 4."""
        left = remaining(self.path, self.nodes.shape[1])
        return path_observation(self.nodes, torch.cat([self.path[:, -1:], left, self.path[:, :1]], 1))

    def whole(self) -> Observation:
        """The whole instance, its nodes marked as visited, current and start: F = 5. It keeps what ``tail`` forgets."""
        count = self.nodes.shape[1]
        marks = torch.zeros(len(self.path), count, 3)
        for column, marked in enumerate((self.path, self.path[:, -1:], self.path[:, :1])):
            marks[..., column].scatter_(1, marked, 1.0)
        index = torch.arange(count).expand(len(self.path), count)
        return {"features": torch.cat([self.nodes, marks], -1), "legal": marks[..., 0] == 0, "choice": index}

    def step(self, action: Tensor) -> tuple[PartialTour, Tensor]:
        """Goes to a node, and from the last one back to the start; the reward is minus the distance.

        Raises ValueError where the node was visited before.
        """
        check_unvisited(self.path, action)
        path = torch.cat([self.path, action[:, None]], 1)
        length = distance(self.nodes, self.path[:, -1], action)
        if path.shape[1] == self.nodes.shape[1]:
            length = length + distance(self.nodes, action, path[:, 0])
        return self.replace(path=path), -length


@dataclass(frozen=True, kw_only=True)
class TSP(Construction):
    """Uniform instances of the Euclidean travelling salesman problem, solved by LKH."""

    name: str = "tsp"

    def instances(self, count: int, size: int, rng: torch.Generator) -> PartialTour:
        nodes = torch.rand(count, size, 2, generator=rng)
        return PartialTour(nodes=nodes, path=torch.zeros(count, 1, dtype=torch.long), batch_size=[count])

    def solve(self, start: PartialTour) -> tuple[Tensor, Tensor]:
        tours = torch.tensor([_tour(nodes) for nodes in start.nodes.double().numpy()])
        places = rows(start.nodes, tours)
        return tours[:, 1:], -(places - places.roll(1, 1)).norm(dim=-1).sum(1)

    def vary(self, start: PartialTour, actions: Tensor, rng: torch.Generator) -> tuple[PartialTour, Tensor]:
        """Any city first, either direction, any symmetry of the square. The last step, which is forced, is left out."""
        batch, count = len(actions), actions.shape[1] + 1
        tour = torch.cat([torch.zeros(batch, 1, dtype=torch.long), actions], 1)
        shift = torch.randint(count, (batch, 1), generator=rng)
        direction = torch.randint(2, (batch, 1), generator=rng) * 2 - 1
        nodes = rows(start.nodes, rows(tour, (shift + direction * torch.arange(count)) % count))
        return start.replace(nodes=reflected(nodes, rng)), torch.arange(1, count - 1).expand(batch, count - 2)


def _tour(nodes: Any) -> list[int]:
    """The order in which LKH visits nodes [C, 2], from node 0."""
    try:
        import elkai
    except ImportError as error:
        raise ImportError("reference tours need the package elkai: pip install policyopt[decision]") from error
    order: list[int] = elkai.DistanceMatrix(_distances(nodes).tolist()).solve_tsp(runs=1)
    return order[:-1]


def _distances(nodes: Any) -> Any:
    """Whole-numbered distances [C, C], rounded up so that a path within the solver's budget is within ours."""
    return np.ceil(np.linalg.norm(nodes[:, None] - nodes[None], axis=-1) * RESOLUTION).astype(np.int64)


class PartialRoutes(TensorClass["nocast"]):  # type: ignore[type-arg, name-defined]
    """Vehicle routes so far. Node 0 is the depot.

    nodes [N, C, 2]; demand [N, C], capacity [N] and remaining [N], what the vehicle still carries, in units; path
    [N, t], the nodes visited in order, from the depot. Action 2 i goes to node i, action 2 i + 1 by way of the depot.
    """

    nodes: Tensor
    demand: Tensor
    capacity: Tensor
    remaining: Tensor
    path: Tensor

    @property
    def done(self) -> Tensor:
        return torch.full((len(self.path),), self.path.shape[1] == self.nodes.shape[1])

    def tail(self) -> Observation:
        """The path problem from the current node to the depot, with demands and load as shares: F = 6, A = 2M.

        Straight there is legal where the load suffices; by way of the depot, except from the depot itself.
        """
        left = remaining(self.path, self.nodes.shape[1])
        index = torch.cat([self.path[:, -1:], left, torch.zeros_like(self.path[:, :1])], 1)
        demand = rows(self.demand, index)
        share = (self.remaining / self.capacity)[:, None].expand(index.shape)
        observation = path_observation(self.nodes, index, demand / self.capacity[:, None], share)
        middle, underway = observation["legal"], self.path.shape[1] > 1
        legal = torch.stack([middle & (demand <= self.remaining[:, None]), middle & underway], -1)
        choice = torch.stack([2 * index, 2 * index + 1], -1)
        return {**observation, "legal": legal.flatten(1), "choice": choice.flatten(1)}

    def step(self, action: Tensor) -> tuple[PartialRoutes, Tensor]:
        """Serves a customer, the last vehicle then returns to the depot; the reward is minus the distance.

        Raises ValueError where the customer was served before or the load does not suffice.
        """
        node, by_depot, here, depot = action // 2, action % 2 == 1, self.path[:, -1], torch.zeros_like(action)
        check_unvisited(self.path, node)
        load = torch.where(by_depot, self.capacity, self.remaining) - self.demand.gather(1, node[:, None])[:, 0]
        if bool((load < 0).any()):
            raise ValueError(f"instance {int((load < 0).nonzero()[0])}: the demand exceeds the load: go by the depot")
        detour = distance(self.nodes, here, depot) + distance(self.nodes, depot, node)
        length = torch.where(by_depot, detour, distance(self.nodes, here, node))
        path = torch.cat([self.path, node[:, None]], 1)
        if path.shape[1] == self.nodes.shape[1]:
            length = length + distance(self.nodes, node, depot)
        return self.replace(remaining=load, path=path), -length


@dataclass(frozen=True, kw_only=True)
class CVRP(Construction):
    """Capacitated vehicle routing: demands of 1 to 9 units, uniform places, vehicles that carry ``capacity`` units.

    iterations: of the iterated local search, an instance.
    """

    name: str = "cvrp"
    capacity: int = 30
    iterations: int = 50

    def instances(self, count: int, size: int, rng: torch.Generator) -> PartialRoutes:
        demand = torch.randint(1, 10, (count, size + 1), generator=rng)
        demand[:, 0] = 0
        full = torch.full((count,), self.capacity)
        return PartialRoutes(
            nodes=torch.rand(count, size + 1, 2, generator=rng),
            demand=demand,
            capacity=full,
            remaining=full,
            path=torch.zeros(count, 1, dtype=torch.long),
            batch_size=[count],
        )

    def solve(self, start: PartialRoutes) -> tuple[Tensor, Tensor]:
        """Routes in ascending order of the load left at their end, so that the least filled vehicle goes last."""
        pairs = zip(start.nodes.double().numpy(), start.demand.numpy(), strict=True)
        actions = torch.tensor([self._actions(nodes, demand) for nodes, demand in pairs])
        partial, returns = start, torch.zeros(len(start))
        for action in actions.T:
            partial, reward = partial.step(action)
            returns = returns + reward
        return actions, returns

    def _actions(self, nodes: Any, demand: Any) -> list[int]:
        clients = [{"delivery": [int(units)]} for units in demand[1:]]
        vehicles = {"num_available": len(clients), "capacity": [self.capacity]}
        routes = _routes(nodes, clients, vehicles, self.iterations)
        routes.sort(key=lambda route: -demand[route].sum())
        steps = [2 * node + (place == 0) for route in routes for place, node in enumerate(route)]
        return [steps[0] - 1, *steps[1:]]

    def vary(self, start: PartialRoutes, actions: Tensor, rng: torch.Generator) -> tuple[PartialRoutes, Tensor]:
        return start.replace(nodes=reflected(start.nodes, rng)), actions


class PartialTrip(TensorClass["nocast"]):  # type: ignore[type-arg, name-defined]
    """Orienteering so far: a round trip from the depot, node 0, that collects prizes within a length budget.

    nodes [N, C, 2]; prize [N, C]; remaining [N], the budget left; origin [N], the current node; gone [N, t], the nodes
    visited or discarded. An action is a node: one that is out of reach is discarded, which changes nothing else.
    """

    nodes: Tensor
    prize: Tensor
    remaining: Tensor
    origin: Tensor
    gone: Tensor

    @property
    def done(self) -> Tensor:
        return ~self._reachable().any(1)

    def _reachable(self) -> Tensor:
        """[N, C]: nodes not gone from which the depot can still be reached in time (1e-6 of slack for rounding)."""
        here = rows(self.nodes, self.origin[:, None])
        length = (self.nodes - here).norm(dim=-1) + (self.nodes - self.nodes[:, :1]).norm(dim=-1)
        within: Tensor = length <= self.remaining[:, None] + 1e-6
        return within.scatter(1, self.gone, False)

    def tail(self) -> Observation:
        """The path problem from the current node to the depot, with prizes and the budget left: F = 6."""
        left = remaining(self.gone, self.nodes.shape[1])
        index = torch.cat([self.origin[:, None], left, torch.zeros_like(self.origin[:, None])], 1)
        budget = self.remaining[:, None].expand(index.shape)
        observation = path_observation(self.nodes, index, rows(self.prize, index), budget)
        legal = observation["legal"] & rows(self._reachable(), index)
        legal[:, 1] |= ~legal.any(1)
        return {**observation, "legal": legal}

    def step(self, action: Tensor) -> tuple[PartialTrip, Tensor]:
        """Goes to a node within reach and collects its prize, the reward, or discards a node that is out of reach.

        Raises ValueError where the node was visited or discarded before.
        """
        check_unvisited(self.gone, action)
        visit = self._reachable().gather(1, action[:, None])[:, 0]
        length = distance(self.nodes, self.origin, action)
        following = self.replace(
            remaining=torch.where(visit, self.remaining - length, self.remaining),
            origin=torch.where(visit, action, self.origin),
            gone=torch.cat([self.gone, action[:, None]], 1),
        )
        return following, self.prize.gather(1, action[:, None])[:, 0] * visit


@dataclass(frozen=True, kw_only=True)
class Orienteering(Construction):
    """Orienteering: uniform places, prizes of 0.01 to 1, a round trip of at most ``max_length``.

    iterations: of the iterated local search, an instance.
    """

    name: str = "op"
    max_length: float = 2.0
    iterations: int = 200

    def instances(self, count: int, size: int, rng: torch.Generator) -> PartialTrip:
        prize = torch.randint(1, 101, (count, size + 1), generator=rng) / 100
        prize[:, 0] = 0.0
        return PartialTrip(
            nodes=torch.rand(count, size + 1, 2, generator=rng),
            prize=prize,
            remaining=torch.full((count,), self.max_length),
            origin=torch.zeros(count, dtype=torch.long),
            gone=torch.zeros(count, 1, dtype=torch.long),
            batch_size=[count],
        )

    def solve(self, start: PartialTrip) -> tuple[Tensor, Tensor]:
        pairs = zip(start.nodes.double().numpy(), start.prize.numpy(), strict=True)
        trips = [self._trip(nodes, prize) for nodes, prize in pairs]
        actions = torch.full((len(trips), start.nodes.shape[1] - 1), -1)
        for row, trip in enumerate(trips):
            actions[row, : len(trip)] = torch.tensor(trip)
        return actions, start.prize.gather(1, actions.clamp(min=0)).sum(1)

    def _trip(self, nodes: Any, prize: Any) -> list[int]:
        clients = [{"prize": round(float(value) * 100), "required": False} for value in prize[1:]]
        vehicle = {"max_distance": int(self.max_length * RESOLUTION), "unit_distance_cost": 0}
        routes = _routes(nodes, clients, vehicle, self.iterations)
        return routes[0] if routes else []

    def vary(self, start: PartialTrip, actions: Tensor, rng: torch.Generator) -> tuple[PartialTrip, Tensor]:
        return start.replace(nodes=reflected(start.nodes, rng)), actions


def _routes(nodes: Any, clients: list[dict[str, Any]], vehicle: dict[str, Any], iterations: int) -> list[list[int]]:
    """The best routes that iterated local search finds, as lists of nodes without the depot (node 0)."""
    try:
        import pyvrp
        from pyvrp.stop import MaxIterations
    except ImportError as error:
        raise ImportError("reference routes need the package pyvrp: pip install policyopt[decision]") from error
    lengths = _distances(nodes)
    problem = pyvrp.ProblemData(
        [pyvrp.Location(float(x), float(y)) for x, y in nodes],
        [pyvrp.Client(place, **client) for place, client in enumerate(clients, 1)],
        [pyvrp.Depot(0)],
        [pyvrp.VehicleType(**vehicle)],
        [lengths],
        [np.zeros_like(lengths)],
    )
    best = pyvrp.solve(problem, MaxIterations(iterations), seed=0, collect_stats=False, display=False).best
    if not best.is_feasible():
        raise ValueError(f"no feasible routes found in {iterations} iterations: give the reference solver more")
    return [[step.idx + 1 for step in route if step.is_client()] for route in best.routes()]


def parse(text: str = "tsp") -> Construction:
    """``"tsp"``, ``"cvrp,size=50,capacity=40"``, ``"op,max_length=3"`` → the problem."""
    kinds: dict[str, type[Construction]] = {kind.name: kind for kind in (TSP, CVRP, Orienteering)}
    name, _, options = text.partition(",")
    return read(kinds[choose(name or "tsp", list(kinds), "routing: problem")], options)
