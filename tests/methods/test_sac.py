from dataclasses import replace

from matching import Match
from policyopt.learners.off_policy import OffPolicy
from policyopt.learners.update import Adam
from policyopt.methods import sac
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
