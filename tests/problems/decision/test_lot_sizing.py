import numpy as np
import pytest
import torch

from policyopt.problems.decision.lot_sizing import REGIMES, LotSizing, Plant, Plants, draw, observe, parse, state_of
from policyopt.types import generator


def worked() -> Plant:
    return Plant(
        production=np.array([[4, 5], [3, 6]]),
        setup_cost=np.array([[1.0, 2.0], [1.0, 1.0]]),
        setup_loss=np.ones((2, 2), np.int64),
        lost_cost=np.array([3.0, 2.0]),
        holding_cost=0.1,
        capacity=10,
    )


def test_a_step_by_hand():
    plant = worked()
    inventory, setup, cost = plant.decide(np.array([3, 0]), np.array([1, 2]), np.array([2, 0]))
    assert (inventory == [3, 4]).all() and (setup == [2, 0]).all()  # machine 1 changes: 5 - 1; machine 2 idles
    assert cost == 2.0
    left, lost, holding = plant.serve(inventory, np.array([2, 6]))
    assert (left == [1, 0]).all()
    assert (lost, holding) == (4.0, pytest.approx(0.1))
    assert -(cost + lost + holding) == pytest.approx(-6.1)


def test_set_ups_are_kept_lost_and_paid_again():
    plant = worked()
    kept, setup, cost = plant.decide(np.array([0, 0]), np.array([1, 2]), np.array([1, 2]))
    assert (kept == [4, 6]).all() and cost == 0.0  # full capacity
    _, idle, free = plant.decide(kept, setup, np.array([0, 0]))
    assert (idle == 0).all() and free == 0.0
    again, _, paid = plant.decide(np.array([0, 0]), idle, np.array([1, 2]))
    assert (again == [3, 5]).all() and paid == 2.0


def test_production_is_never_negative_and_storage_has_a_limit():
    plant = Plant(**{**vars(worked()), "production": np.array([[0, 5], [3, 6]]), "setup_loss": np.full((2, 2), 4)})
    inventory, _, _ = plant.decide(np.array([3, 9]), np.array([0, 2]), np.array([1, 2]))
    assert (inventory == [3, 15]).all()  # machine 1 can't make item 1: nothing, and not -4
    assert (plant.serve(inventory, np.array([0, 1]))[0] == [3, 10]).all()


def test_two_machines_may_make_one_item():
    assert (worked().decide(np.array([0, 0]), np.array([2, 2]), np.array([2, 2]))[0] == [0, 11]).all()


def test_observations_are_the_whole_state():
    rng = np.random.default_rng(0)
    inventory, setup = rng.integers(0, 100, (7, 3, 5)), rng.integers(0, 6, (7, 3, 4))
    seen = observe(inventory, setup, 5)
    assert seen.shape == (7, 3, 5 + 4 * 5) and seen.dtype == np.float32
    for before, after in zip((inventory, setup), state_of(seen, 5), strict=True):
        assert (before == after).all()


@pytest.mark.parametrize("regime", list(REGIMES))
def test_the_post_decision_state_and_the_demand_make_the_step(regime):
    problem = LotSizing(regime=regime, items=4, machines=2, horizon=6, instance=3)
    plants, rng = problem.make(9, 5), np.random.default_rng(1)
    for t in range(6):
        before, actions = plants.observations, rng.integers(0, 5, (9, 2))
        post, known = problem.post_decision(before, actions)
        again, same = problem.post_decision(before, actions)
        assert (post == again).all() and (known == same).all()
        demand = plants.demand[t]
        left, lost, holding = problem.plant.serve(state_of(post, 4)[0], demand)
        made = plants.step(actions)
        assert (made.next_observations == observe(left, actions, 4)).all()
        np.testing.assert_allclose(made.rewards, known - lost - holding, rtol=1e-6)
        assert (known <= 0).all()
    assert made.truncated.all() and not made.terminated.any()


def test_a_vector_of_plants_is_what_single_ones_are():
    problem, rng = LotSizing(items=3, machines=2), np.random.default_rng(0)
    inventory, setup = rng.integers(0, 50, (6, 3)), rng.integers(0, 4, (6, 2))
    actions, demand = rng.integers(0, 4, (6, 2)), rng.integers(0, 20, (6, 3))
    together = problem.plant.decide(inventory, setup, actions)
    for i in range(6):
        production, changes = problem.plant.production, 0.0
        stock = list(inventory[i])
        for machine, item in enumerate(actions[i]):
            if item:
                changed = item != setup[i, machine]
                loss = problem.plant.setup_loss[machine, item - 1] if changed else 0
                changes += problem.plant.setup_cost[machine, item - 1] if changed else 0.0
                stock[item - 1] += max(production[machine, item - 1] - loss, 0)
        assert list(together[0][i]) == stock and together[2][i] == changes
        served = problem.plant.serve(np.array(stock), demand[i])
        whole = problem.plant.serve(together[0], demand)
        assert (served[0] == whole[0][i]).all() and served[1] == whole[1][i] and served[2] == whole[2][i]


def test_demand_does_not_depend_on_what_is_done():
    one, two = (LotSizing(horizon=4).make(3, 7) for _ in range(2))
    for _ in range(9):
        assert (one.demand == two.demand).all()
        one.step(np.zeros((3, 3), np.int64))
        two.step(np.full((3, 3), 2))
    assert (LotSizing(horizon=4).make(3, 8).demand != LotSizing(horizon=4).make(3, 7).demand).any()


def test_starts_are_feasible():
    plants = LotSizing(instance=1).make(2000, 0)
    inventory, setup = state_of(plants.observations, 6)
    able = np.concatenate([np.ones((3, 1), bool), plants.plant.production > 0], 1)
    for machine in range(3):
        assert set(setup[:, machine]) == set(np.flatnonzero(able[machine]))
    assert inventory.min() == 0 and inventory.max() == 99


def test_instances_follow_their_regime():
    plant = draw(REGIMES["costly"], 200, 100, 0)
    assert (plant.production == 0).mean() == pytest.approx(0.4, abs=0.01)
    assert plant.production.max() == 40
    assert (plant.setup_cost == 15).mean() == pytest.approx(0.2, abs=0.01)
    assert plant.setup_cost.max() == 30
    assert [(plant.setup_loss == k).mean() for k in (1, 2, 3)] == pytest.approx([0.7, 0.15, 0.15], abs=0.01)
    assert set(plant.lost_cost) == {0.1, 1.1}
    mild = draw(REGIMES["mild"], 200, 100, 0)
    assert (mild.production.max(), mild.setup_cost.max(), mild.setup_loss.max()) == (12, 3, 1)


def test_a_saved_state_goes_on_alike():
    actions = np.random.default_rng(0).integers(0, 7, (20, 4, 3))
    plants = LotSizing(horizon=6).make(4, 2)
    for one in actions[:10]:
        plants.step(one)
    again = LotSizing(horizon=6).make(4, 2)
    again.load_state_dict(plants.state_dict())
    for one in actions[10:]:
        assert (plants.observations == again.observations).all()
        assert (plants.step(one).rewards == again.step(one).rewards).all()


def test_evaluation_plays_to_the_horizon():
    def idle(observation, memory, rng, greedy):
        assert greedy
        return torch.zeros(len(observation), 3, dtype=torch.long), {}, memory

    found = LotSizing(horizon=5).evaluate(idle, generator(0, "test"))
    assert found["eval/episode_length"] == 5.0 and found["eval/return"] < 0.0


def test_names_and_errors():
    problem = parse("regime=mild,items=4,machines=2,instance=9")
    assert problem == LotSizing(regime="mild", items=4, machines=2, instance=9)
    assert problem.spaces.choices == (5, 5) and problem.spaces.observation == 12
    for text, words in (
        ("regime=mil", "mild"),
        ("item=3", "items"),
        ("items=0", "positive"),
        ("items=x", "cannot read"),
    ):
        with pytest.raises(ValueError, match=words):
            parse(text)
    plants = Plants(worked(), 2, 5, 0)
    for actions in (np.zeros((2, 3), np.int64), np.full((2, 2), 3), np.full((2, 2), -1)):
        with pytest.raises(ValueError, match="actions must be"):
            plants.step(actions)
