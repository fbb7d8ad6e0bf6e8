import torch

from policyopt.methods import flow_bc
from policyopt.models.diffusion import Flow
from policyopt.problems.control.two_gap import TwoGap
from policyopt.types import generator


def test_a_clone_keeps_both_ways():
    """Where the ways part, demonstrations go straight up or straight down; further up or down they all go on."""
    learner = flow_bc.cloning(Flow(width=32, steps=5)).learner(TwoGap(), seed=0)
    losses = [float(learner.step()["loss/imitation"]) for _ in range(400)]
    assert sum(losses[-50:]) / 50 < 0.6 * losses[0]

    def upwards(height: float) -> float:
        action, _, _ = learner.policy.act(torch.tensor([[-0.8, height]]).repeat(1000, 1), None, generator(0, "a"))
        return float((action[:, 1] > 0.0).float().mean())

    assert upwards(-0.5) < 0.4 < upwards(0.0) < 0.62 < upwards(0.5)


def test_the_method_is_offline():
    method = flow_bc.method()
    assert method.collector is None
    assert [u.trains for u in method.updates()] == ["flow"]
    assert method.rounds[0].updates[0].model == Flow(width=256, layers=3, steps=10)
