import numpy as np
import pytest

from policyopt.problems.decision.slippery_lake import Map, SlipperyLake, Walkers, draw, observe, parse

LEFT, DOWN, RIGHT, UP = range(4)


def two_by_two(slip_to=RIGHT) -> Map:
    """Start, hole / floor, goal; slips go one way."""
    return Map(
        following=np.array([[0, 2, 1, 0], [0, 3, 1, 1], [2, 2, 3, 0], [2, 3, 3, 1]]),
        hole=np.array([False, True, False, False]),
        slips=np.eye(4)[[slip_to] * 4],
        distance=np.array([2, 1, 1, 0]),
    )


def outcomes(lake, action, times=400):
    """What one action from the start gives: cell → (share, reward, terminated)."""
    walkers = Walkers(lake, times, 10, 0)
    made = walkers.step(np.full(times, action))
    cells = made.next_observations.argmax(-1)
    return {
        int(c): ((cells == c).mean(), set(made.rewards[cells == c].round(4)), made.terminated[cells == c].all())
        for c in set(cells)
    }


def test_a_step_by_hand():
    found = outcomes(two_by_two(), DOWN)
    assert set(found) == {2, 3}
    assert found[2][1] == {np.float32(0.5)} and not found[2][2]  # 1 / (1 + 1)
    assert found[3][1] == {np.float32(1.5)} and found[3][2]  # and the slip reaches the goal
    assert found[3][0] == pytest.approx(0.5, abs=0.08)
    hole = outcomes(two_by_two(), RIGHT)
    assert hole == {1: (1.0, {np.float32(0.25)}, True)}  # 1/2 - 1/(2 + 2); there is no slip out of a hole
    fallen = outcomes(two_by_two(slip_to=RIGHT), UP)  # the border holds, the slip falls into the hole
    assert fallen[1][1] == {np.float32(round(1 / 3 + 1 / 2 - 1 / 4, 4))} and fallen[0][1] == {np.float32(0.3333)}


def test_maps_lead_to_the_goal_and_their_tables_are_those_of_a_grid():
    for seed in range(20):
        lake = draw(6, seed)
        assert lake.reachable() and not lake.hole[[0, 35]].any()
    for cell in range(36):
        y, x = divmod(cell, 6)
        around = [(y, max(x - 1, 0)), (min(y + 1, 5), x), (y, min(x + 1, 5)), (max(y - 1, 0), x)]
        assert lake.following[cell].tolist() == [6 * v + u for v, u in around]
        assert lake.distance[cell] == 10 - y - x
    np.testing.assert_allclose(lake.slips.sum(1), 1.0)
    walled = Map(**{**vars(lake), "hole": np.isin(np.arange(36), [1, 6])})
    assert not walled.reachable()


def test_slips_follow_their_distribution():
    lake = Map(**{**vars(two_by_two()), "hole": np.zeros(4, bool), "slips": np.array([[0.1, 0.2, 0.3, 0.4]] * 4)})
    found = outcomes(lake, LEFT, times=40_000)  # stays; then: stays 0.1, down 0.2, right 0.3, stays 0.4, all with 0.5
    assert [found[c][0] for c in (0, 1, 2)] == pytest.approx([0.75, 0.15, 0.1], abs=0.01)


def test_the_known_part_is_the_intended_move():
    problem = SlipperyLake(instance=2)
    walkers, rng = problem.make(50, 3), np.random.default_rng(0)
    for _ in range(60):
        before, actions = walkers.observations, rng.integers(0, 4, 50)
        post, known = problem.post_decision(before, actions)
        made = walkers.step(actions)
        cell, reached = post.argmax(-1), made.next_observations.argmax(-1)
        assert (post == observe(problem.map.following[before.argmax(-1), actions], 36)).all()
        stays = reached == cell
        slipped = (problem.map.following[cell] == reached[:, None]).any(1)
        assert (stays | slipped).all()
        np.testing.assert_allclose(known, 1 / (1 + problem.map.distance[cell]), rtol=1e-6)
        assert (made.rewards >= known - 1 / 12 - 1e-6).all()
        ended = made.terminated | made.truncated
        assert (walkers.observations[ended].argmax(-1) == 0).all()
        assert (walkers.observations[~ended] == made.next_observations[~ended]).all()


def test_episodes_are_cut_and_a_saved_state_goes_on_alike():
    problem = SlipperyLake(horizon=7)
    actions = np.random.default_rng(0).integers(0, 4, (40, 9))
    walkers, cuts = problem.make(9, 1), 0
    for one in actions[:20]:
        cuts += walkers.step(one).truncated.sum()
        assert walkers.elapsed.max() < 7
    assert cuts
    again = problem.make(9, 1)
    again.load_state_dict(walkers.state_dict())
    for one in actions[20:]:
        assert all((a == b).all() for a, b in zip(walkers.step(one), again.step(one), strict=True))


def test_names_and_errors():
    assert parse("size=8,instance=3") == SlipperyLake(size=8, instance=3)
    for text, words in (("sise=3", "size"), ("size=1", "at least 2"), ("horizon=x", "cannot read")):
        with pytest.raises(ValueError, match=words):
            parse(text)
    with pytest.raises(ValueError, match="actions must be"):
        SlipperyLake().make(2, 0).step(np.array([0, 4]))
