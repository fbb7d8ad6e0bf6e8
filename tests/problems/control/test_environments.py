import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from policyopt.problems.control.environments import GymnasiumProblem, UnitBox, episode_returns, parse
from policyopt.problems.control.point_mass import BOUND, PointMass
from policyopt.problems.control.point_mass import parse as parse_mass


class Count(gymnasium.Env):
    """Observes the number of steps; terminates at 3 where the action is 1, is cut at 5 by its registration."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Discrete(2, start=4)
    broken = False

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.bias = self.np_random.random() / 10
        return np.array([self.bias]), {}

    def step(self, action):
        assert action in (4, 5)
        self.t += 1
        seen = np.nan if self.broken and self.t == 2 else self.t + self.bias
        return np.array([seen]), 1.0, self.t == 3 and action == 5, False, {}


class Broken(Count):
    broken = True


class Pictures(Count):
    observation_space = spaces.Dict({"x": spaces.Discrete(2)})


class Levers(Count):
    """Rewards its two levers' places, which are counted from 1 and from 0."""

    action_space = spaces.MultiDiscrete([2, 3], start=[1, 0])

    def step(self, action):
        assert self.action_space.contains(action)
        self.t += 1
        return np.array([self.t]), float(action @ [10, 1]), False, False, {}


@pytest.fixture(autouse=True, scope="module")
def _registered():
    for name, kind in (("Count-v0", Count), ("Broken-v0", Broken), ("Pictures-v0", Pictures), ("Levers-v0", Levers)):
        gymnasium.register(id=name, entry_point=kind, max_episode_steps=5)
    yield
    for name in ("Count-v0", "Broken-v0", "Pictures-v0", "Levers-v0"):
        gymnasium.registry.pop(name)


def constant(action):
    return lambda observation, memory, rng, greedy: (torch.full((len(observation),), action), {}, memory)


def test_termination_and_cut_are_told_apart_and_final_states_are_returned():
    environment = GymnasiumProblem(id="Count-v0").make(2, seed=7)
    first = environment.observations.copy()
    results = [environment.step(np.array([1, 0])) for _ in range(5)]
    assert [r.terminated[0] for r in results] == [False, False, True, False, False]
    assert not any(r.terminated[1] for r in results)
    assert [r.truncated.tolist() for r in results] == [[False, False]] * 4 + [[False, True]]
    np.testing.assert_allclose(results[2].next_observations[0], 3 + first[0], rtol=1e-6)  # the state BEFORE the reset
    np.testing.assert_allclose(results[4].next_observations[1], 5 + first[1], rtol=1e-6)
    assert environment.observations[1, 0] < 0.1  # and a new episode afterwards
    assert environment.observations[1, 0] != first[1, 0]


def test_episodes_and_environments_differ_and_repeat_with_the_seed():
    problem = GymnasiumProblem(id="Count-v0")
    one, same, other = (problem.make(3, seed=s).observations for s in (1, 1, 2))
    assert (one == same).all()
    assert len(np.unique(np.concatenate([one, other]))) == 6


def test_evaluation_counts_the_first_episode_of_each_environment():
    problem = GymnasiumProblem(id="Count-v0", episodes=3)
    rng = torch.Generator()
    assert problem.evaluate(constant(1), rng) == {"eval/return": 3.0, "eval/episode_length": 3.0}
    assert problem.evaluate(constant(0), rng)["eval/return"] == 5.0
    returns, length = episode_returns(problem.make(2, 0), constant(1), rng, gamma=0.5)
    np.testing.assert_allclose(returns, 1.75)
    assert length.tolist() == [3, 3]


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "mo-mountaincar-v0"])
def test_a_loaded_state_goes_on_identically(name):
    problem = GymnasiumProblem(id=name)
    rng = np.random.default_rng(0)
    discrete, size = problem.spaces.discrete, problem.spaces.action

    def actions():
        return rng.integers(size, size=3) if discrete else rng.normal(size=(3, size)).astype(np.float32)

    environment = problem.make(3, seed=5)
    for _ in range(60):
        environment.step(actions())
    copy = problem.make(3, seed=5)
    copy.load_state_dict(environment.state_dict())
    assert (copy.observations == environment.observations).all()
    for _ in range(30):
        chosen = actions()
        for mine, theirs in zip(environment.step(chosen), copy.step(chosen), strict=True):
            assert (mine == theirs).all()
        assert (copy.observations == environment.observations).all()


def test_actions_beyond_the_bounds_are_clipped():
    problem = GymnasiumProblem(id="Pendulum-v1")
    a, b = problem.make(1, 0), problem.make(1, 0)
    assert (a.step(np.array([[9.0]])).next_observations == b.step(np.array([[2.0]])).next_observations).all()


def test_vector_rewards_and_discrete_observations():
    tree = parse("fruit-tree-v0,depth=5")
    assert tree.options == {"depth": 5}
    assert tree.spaces.objectives == 6
    assert tree.make(2, 0).step(np.zeros(2, np.int64)).rewards.shape == (2, 6)
    lake = parse("FrozenLake-v1,is_slippery=False")
    np.testing.assert_array_equal(lake.make(1, 0).observations, np.eye(16)[:1])


def test_several_choices_at_once():
    levers = GymnasiumProblem(id="Levers-v0")
    assert levers.spaces.choices == (2, 3) and levers.spaces.discrete
    assert levers.make(2, 0).step(np.array([[0, 2], [1, 1]])).rewards.tolist() == [12.0, 21.0]


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"nearest: .*CartPole-v1"):
        parse("CartPol-v1")
    with pytest.raises(ValueError, match="name=value"):
        parse("CartPole-v1,fast")
    with pytest.raises(ValueError, match="does not take the options"):
        parse("CartPole-v1,speed=3").make(1, 0)
    with pytest.raises(ValueError, match="must be a Box or Discrete space"):
        parse("Pictures-v0").make(1, 0)
    broken = parse("Broken-v0").make(2, 0)
    broken.step(np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="simulation broke down"):
        broken.step(np.zeros(2, np.int64))


def test_point_mass_by_hand():
    mass = PointMass(horizon=2).make(1, seed=3)
    x0 = mass.observations[0, :2].copy()
    result = mass.step(np.array([[2.0, 0.5]]))  # the first force is clipped to 1
    x1 = x0 + 0.1 * 0.2 * np.array([1.0, 0.5])
    np.testing.assert_allclose(result.next_observations[0], [*x1, 0.2, 0.1], rtol=1e-5)
    wanted = [1 - np.hypot(*(x1 - [1, 0])) / 4, 1 - np.hypot(*(x1 - [-1, 1])) / 4, 1 - 1.25 / 2]
    np.testing.assert_allclose(result.rewards[0], wanted, rtol=1e-5)
    end = mass.step(np.zeros((1, 2)))
    assert end.truncated.all()
    assert not end.terminated.any()
    assert (mass.observations[0, 2:] == 0).all()  # at rest, elsewhere
    assert (mass.observations[0, :2] != x0).all()


def test_point_mass_rewards_are_positive_and_its_state_is_kept():
    environment = PointMass().make(64, 0)
    rng = np.random.default_rng(0)
    pull = rng.choice([-1.0, 1.0], (64, 2))
    for _ in range(70):
        result = environment.step(pull)
        assert (result.rewards >= 0).all()
        assert (result.rewards <= 1).all()
    assert np.abs(environment.observations[:, :2]).max() <= BOUND
    copy = PointMass().make(64, 0)
    copy.load_state_dict(environment.state_dict())
    for _ in range(40):
        one, two = environment.step(pull), copy.step(pull)
        assert all((a == b).all() for a, b in zip(one, two, strict=True))
    with pytest.raises(ValueError, match="horizon=<steps>"):
        parse_mass("mass=3")


def test_expected_utility_gives_each_episode_its_preference():
    seen = []

    def act(observation, memory, rng, greedy):
        seen.append(memory)
        return torch.zeros(len(observation), 2), {}, memory

    row = PointMass(episodes=4).evaluate(act, torch.Generator().manual_seed(1))
    assert seen[0].shape == (4, 3)
    np.testing.assert_allclose(seen[0].sum(1), 1.0, rtol=1e-5)
    assert row["eval/return_2"] == pytest.approx(50.0)  # no force
    assert row["eval/return"] == pytest.approx(
        float((seen[0].mean(0) * torch.tensor([row[f"eval/return_{i}"] for i in range(3)])).sum()), rel=0.1
    )
    assert len(seen) == 50


def test_the_unit_box_stands_for_the_environment_s_bounds():
    low, high = np.array([-2.0, 0.0, -np.inf]), np.array([2.0, 1.0, np.inf])
    actions = np.array([[-1.0, 0.0, 5.0], [0.5, 1.0, -7.0], [3.0, -9.0, 0.0]])
    wanted = [[-2.0, 0.5, 5.0], [1.0, 1.0, -7.0], [2.0, 0.0, 0.0]]
    box = UnitBox(low, high)
    np.testing.assert_allclose(box.from_unit(actions), wanted)
    np.testing.assert_allclose(box.from_unit(box.to_unit(np.array(wanted))), wanted)
    pendulum = parse("Pendulum-v1")
    assert (pendulum.spaces.low, pendulum.spaces.high) == ((-2.0,), (2.0,))
    raw, ours = pendulum.single(), pendulum.make(1, seed=3)
    raw.reset(seed=0)
    raw.unwrapped.state = ours.environments[0].unwrapped.state.copy()
    np.testing.assert_allclose(
        ours.step(np.array([[0.25]])).next_observations[0], raw.step(np.array([0.5]))[0], rtol=1e-5
    )
    assert parse("CartPole-v1").spaces.low == ()


class Wild(Count):
    """Its second step is not what its spaces say."""

    def step(self, action):
        observation, reward, *rest = super().step(action)
        if self.t == 2 and self.spec.kwargs.get("how") == "raise":
            raise RuntimeError("the motor is gone")
        if self.t == 2:
            how = self.spec.kwargs["how"]
            observation = np.zeros(3) if how == "observation" else observation
            reward = np.ones(2) if how == "reward" else reward
        return observation, reward, *rest

    def __init__(self, how=""):
        pass


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", r"failed at the action 4: RuntimeError\('the motor is gone'\)"),
        ("observation", r"observation of the shape \(3,\); its space is Box"),
        ("reward", r"gave the reward array\(\[1., 1.\]\); expected the shape \(\)"),
    ],
)
def test_a_failing_environment_is_named_with_its_step(how, message):
    gymnasium.register(id="Wild-v0", entry_point=Wild, max_episode_steps=5)
    try:
        wild = parse(f"Wild-v0,how={how}").make(2, 0)
        wild.step(np.zeros(2, np.int64))
        with pytest.raises(ValueError, match=r"environment 0 of 2, .*Wild-v0.*: step 1 of episode 0 .*" + message):
            wild.step(np.zeros(2, np.int64))
    finally:
        gymnasium.registry.pop("Wild-v0")
