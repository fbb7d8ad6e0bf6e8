import numpy as np
import pytest

from policyopt.problems.control.four_rooms import (
    DOORS,
    GOAL,
    HORIZON,
    MIDDLE,
    MOVES,
    SIZE,
    WALLS,
    Walkers,
    moved,
    observe,
    parse,
)


def test_walls_stop_and_doors_do_not():
    assert WALLS.sum() == 2 * SIZE - 1 - 4
    beside, door = np.array([[0, MIDDLE - 1]]), np.array([[DOORS[0], MIDDLE - 1]])
    assert moved(beside, np.array([1])).tolist() == beside.tolist()
    assert moved(door, np.array([1])).tolist() == [[DOORS[0], MIDDLE]]
    assert moved(np.array([[0, 0]] * 4), np.arange(4)).tolist() == [[0, 0], [0, 1], [1, 0], [0, 0]]


def test_every_free_cell_can_be_reached():
    found, new = {(0, 0)}, {(0, 0)}
    while new:
        cells = np.array(sorted(new)).repeat(4, 0)
        new = set(map(tuple, moved(cells, np.tile(np.arange(4), len(cells) // 4)).tolist())) - found
        found |= new
    assert len(found) == SIZE**2 - WALLS.sum() and tuple(GOAL) in found and len(MOVES) == 4


def test_an_episode_ends_in_the_corner_or_at_the_limit():
    walkers = Walkers(2, 0)
    walkers.cell[:] = [[SIZE - 1, SIZE - 2], [0, 0]]
    walkers.elapsed[:] = [0, HORIZON - 1]
    step = walkers.step(np.array([1, 0]))
    assert step.rewards.tolist() == [1.0, 0.0]
    assert step.terminated.tolist() == [True, False] and step.truncated.tolist() == [False, True]
    assert step.next_observations[0].argmax() == SIZE**2 - 1 and walkers.elapsed.tolist() == [0, 0]
    assert (walkers.cell < MIDDLE).all() and np.array_equal(observe(walkers.cell), walkers.observations)


def test_a_saved_state_goes_on_as_before():
    one, other = Walkers(3, 1), Walkers(3, 1)
    rng = np.random.default_rng(0)
    for _ in range(HORIZON + 3):
        one.step(rng.integers(4, size=3))
    other.load_state_dict(one.state_dict())
    for _ in range(HORIZON):
        action = rng.integers(4, size=3)
        a, b = one.step(action), other.step(action)
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_bad_input():
    with pytest.raises(ValueError, match="expected 2 actions from 0 to 3"):
        Walkers(2, 0).step(np.array([0, 4]))
    with pytest.raises(ValueError, match="has no options"):
        parse("size=3")
