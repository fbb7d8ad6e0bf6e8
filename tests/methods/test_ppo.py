from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch

from policyopt import api, registry
from policyopt.credit.returns import GeneralizedAdvantage, RewardAtEnd
from policyopt.learners.off_policy import OffPolicy
from policyopt.models.control import MLP
from policyopt.problems.control.environments import GymnasiumProblem
from policyopt.problems.control.point_mass import PointMass
from policyopt.rollouts.language import Groups
from policyopt.rollouts.vector import Vector
from policyopt.training.checkpoint import Checkpoints
from policyopt.training.loop import Cadence, run
from policyopt.types import Budget


def on(name, problem):
    """The named method as it is on a problem."""
    problem = registry.problem(problem) if isinstance(problem, str) else problem
    return registry.method(registry.suited(name, problem))


def advantages(method):
    return next(part for part in method.credit if isinstance(part, GeneralizedAdvantage))


@pytest.mark.parametrize("name", ["gym:HalfCheetah-v5", "point-mass", GymnasiumProblem(id="CartPole-v1")])
def test_ppo_is_one_method_and_the_problem_decides_who_acts_where(name):
    language, control = on("ppo", "arithmetic"), on("ppo", name)
    assert language == registry.method("ppo")
    assert isinstance(language.collector, Groups) and isinstance(control.collector, Vector)
    assert any(isinstance(part, RewardAtEnd) for part in language.credit)
    assert language.policy is None and isinstance(control.policy, MLP)
    assert control.objective == language.objective
    assert advantages(control) == advantages(language)
    assert control == registry.method("ppo:control")


def test_other_variants_and_methods_stay_what_they_are():
    assert on("reinforce:batch_mean", "gym:CartPole-v1") == registry.method("reinforce:batch_mean")
    assert isinstance(on("sac", "gym:Pendulum-v1"), OffPolicy)
    with pytest.raises(ValueError, match="variant of ppo"):
        on("ppo:contrl", "gym:CartPole-v1")


SHORT = {"ppo": {"environments": "2", "steps": "16"}, "reinforce": {"episodes": "2"}}


@pytest.mark.parametrize("name", ["ppo", "reinforce"])
def test_training_by_name_and_repeating_it(name, tmp_path):
    overrides = {"minibatches": "1", **{f"collector.{key}": value for key, value in SHORT[name].items()}}
    made = [
        api.train(
            name, "gym:CartPole-v1", budget="64-env-steps", out=tmp_path / f"{i}", progress=False, overrides=overrides
        )
        for i in range(2)
    ]
    again = api.read_config(tmp_path / "0")
    assert again.method.partition(":")[0] == name
    for one, two in zip(*(each.learner.policy.parameters() for each in made), strict=True):
        assert torch.equal(one, two)
    restored, _ = api.load_run(tmp_path / "0")
    for one, two in zip(restored.parameters(), made[0].learner.policy.parameters(), strict=True):
        assert torch.equal(one, two)


def test_reinforce_learns_cartpole_a_little():
    result = run(
        on("reinforce", "gym:CartPole-v1"),
        GymnasiumProblem(id="CartPole-v1"),
        budget=Budget(env_steps=15_000),
        seed=0,
        cadence=Cadence(evaluations=1),
    )
    returns = result.curve("episode/return")[1]
    assert np.mean(returns[-5:]) > 1.5 * np.mean(returns[:5])


class Fragile(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))
    t = 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1), {}

    def step(self, action):
        self.t += 1
        if self.t == 40:
            raise OSError("the simulator is gone")
        return np.zeros(1), 0.0, False, False, {}


def test_checkpoints_outlive_an_environment_that_fails(tmp_path):
    gymnasium.register(id="Fragile-v0", entry_point=Fragile, max_episode_steps=8)
    try:
        problem = GymnasiumProblem(id="Fragile-v0", episodes=1)
        method = on("ppo", problem)
        method = replace(method, collector=Vector(environments=1, steps=8), minibatches=1, epochs=1)
        with pytest.raises(
            ValueError, match=r"environment 0 of 1, .*Fragile-v0.*step 7 of episode 4 .*simulator is gone"
        ):
            run(
                method,
                problem,
                budget=Budget(env_steps=80),
                seed=0,
                out=tmp_path,
                cadence=Cadence(evaluations=1, checkpoints=10),
            )
        state = Checkpoints(tmp_path / "checkpoints").latest()
        assert state is not None and state["learner"]["clock"]["step"] == 4
    finally:
        gymnasium.registry.pop("Fragile-v0")


def test_a_method_that_cannot_act_there_says_so():
    with pytest.raises(ValueError, match=r"CartPole-v1.*continuous actions"):
        registry.method("td3").learner(GymnasiumProblem(id="CartPole-v1"), seed=0)
    with pytest.raises(ValueError, match=r"point-mass.*one reward"):
        registry.method("sac").learner(PointMass(), seed=0)


def test_moments_of_observations_and_returns_are_saved_and_go_on_identically():
    problem = GymnasiumProblem(id="Pendulum-v1")
    method = on("ppo", problem)
    method = replace(method, collector=Vector(environments=2, steps=130), minibatches=2, epochs=1)
    straight, resumed = (method.learner(problem, seed=s, budget=Budget(env_steps=2000)) for s in (5, 6))
    for _ in range(2):
        straight.step()
    state = straight.state_dict()
    assert float(state["policy"]["standardization.count"]) == 2 * 2 * 130
    assert float(state["memories"]["credit.0"]["count"]) == 2 * 2 * 130
    resumed.load_state_dict(state)
    for _ in range(2):
        one, two = straight.step(), resumed.step()
        assert {k: float(v) for k, v in one.items()} == {k: float(v) for k, v in two.items()}
    assert torch.equal(straight.policy.standardization.mean, resumed.policy.standardization.mean)
    assert torch.equal(straight.memories["credit.0"].state["squares"], resumed.memories["credit.0"].state["squares"])
