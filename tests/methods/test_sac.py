from dataclasses import dataclass, replace

import numpy as np

from policyopt.learners.off_policy import OffPolicy
from policyopt.learners.update import Adam
from policyopt.methods import sac
from policyopt.problems.control.environments import Control, Spaces, Transition
from policyopt.rollouts.replay import Interaction
from policyopt.types import generator


def test_the_paper_s_settings():
    method = sac.method()
    critic, actor, temperature = method.updates()
    assert (critic.gamma, critic.polyak, critic.model.heads, critic.model.width) == (0.99, 0.005, 2, 256)
    assert actor.optimizer == Adam(learning_rate=3e-4, gradient_clip=None)
    assert temperature.target_entropy is None
    assert (method.batch, method.rounds[0].repeat) == (256, 1)
    assert isinstance(method, OffPolicy)


@dataclass(frozen=True, kw_only=True)
class Match(Control):
    """One step: answer a number in [-0.5, 0.5] with the same number; the reward is minus the squared error."""

    @property
    def name(self):
        return "match"

    @property
    def spaces(self):
        return Spaces(observation=1, action=1, discrete=False)

    def make(self, n, seed):
        return MatchEnvironment(n, seed)


class MatchEnvironment:
    def __init__(self, n, seed):
        self.rng = np.random.default_rng(seed)
        self.n = n
        self.observations = self.draw()

    def draw(self):
        return self.rng.uniform(-0.5, 0.5, (self.n, 1)).astype(np.float32)

    def step(self, actions):
        rewards = -10.0 * ((actions - self.observations) ** 2).sum(1).astype(np.float32)
        reached, self.observations = self.observations, self.draw()
        return Transition(reached, rewards, np.ones(self.n, bool), np.zeros(self.n, bool))


def test_it_learns_to_answer():
    method = sac.method()
    fast = Adam(learning_rate=3e-3, gradient_clip=None)
    updates = [
        replace(u, optimizer=fast, **({"model": replace(u.model, width=16)} if hasattr(u, "model") else {}))
        for u in method.updates()
    ]
    method = replace(
        method,
        rounds=(replace(method.rounds[0], updates=tuple(updates)),),
        collector=Interaction(environments=8, warm_up=128),
        batch=32,
    )
    learner = method.learner(Match(episodes=200), seed=0)
    before = learner.problem.evaluate(learner.policy.act, generator(0, "e"))["eval/return"]
    for _ in range(250):
        learner.step()
    after = learner.problem.evaluate(learner.policy.act, generator(0, "e"))["eval/return"]
    assert before < -0.5  # the answer 0 earns -0.83 in the mean
    assert after > -0.2
