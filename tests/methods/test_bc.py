import math
from dataclasses import replace

import torch

from policyopt.learners.off_policy import Round
from policyopt.methods import bc
from policyopt.models.bounded_actors import Bounded, GaussianInBox
from policyopt.problems.control.checker import Checker
from policyopt.types import generator

PROBLEM = Checker(good=1.0, logged=500)


def small(method, model):
    return replace(method, rounds=(Round(updates=(bc.Cloning(model=model),)),), batch=64).learner(PROBLEM, seed=0)


def test_the_losses_are_the_textbook_s():
    for method, model in ((bc.method(), Bounded(width=8)), (bc.gaussian(), GaussianInBox(width=8))):
        learner = small(method, model)
        batch = learner.memory.sample(16, generator(0, "b"))
        (update,), agent = learner.method.updates(), learner.agent
        mean = agent["actor"](batch.observation)
        likelihood = torch.distributions.Normal(mean, 1.0).log_prob(batch.action).sum(-1).mean()
        wanted = -likelihood if isinstance(model, GaussianInBox) else (mean - batch.action).square().mean()
        assert torch.allclose(update.loss(agent, batch, generator(0, "l")).value, wanted)


def test_it_imitates():
    learner = small(bc.method(), Bounded(width=32))
    losses = [float(learner.step()["loss/imitation"]) for _ in range(300)]
    assert sum(losses[-20:]) / 20 < 0.4 * losses[0]


def test_the_gaussian_samples_around_its_mode():
    actor = GaussianInBox(width=8).build(2, 1, 0)
    with torch.no_grad():
        actor.log_deviation.fill_(math.log(0.1))
    seen = torch.zeros(4000, 2)
    action, logp = actor.sample(seen, generator(0, "a"))
    assert abs(action.std().item() - 0.1) < 0.01
    assert torch.allclose(logp, actor.logp(seen, action), atol=1e-4)
    assert torch.equal(actor.mode(seen), actor(seen))
