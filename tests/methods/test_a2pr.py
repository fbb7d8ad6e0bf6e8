from dataclasses import replace

import pytest
import torch

from policyopt.learners.off_policy import DeterministicPolicy, Round, first_values
from policyopt.methods import a2pr, td3_bc
from policyopt.models.action_vae import ActionAutoencoder, latent_divergence
from policyopt.objectives.behaviour import BehaviourRegularizer, behaviour_distance
from policyopt.problems.control.checker import Checker
from policyopt.types import generator

ACTION, DATA, GENERATED = (torch.tensor([x]) for x in ((0.2, -0.1), (0.5, 0.0), (0.0, 0.3)))


@pytest.mark.parametrize(
    ("data_value", "generated_value", "target", "weight", "loss"),
    [
        (1.0, 2.0, GENERATED, 1.0, 0.04),
        (1.0, 0.7, DATA, 1.0, 0.02),
        (0.3, 0.4, GENERATED, 0.0, 0.0),
        (0.3, 0.6, GENERATED, 1.0, 0.04),
    ],
)
def test_the_target_by_hand(data_value, generated_value, target, weight, loss):
    """V = 0.5, w₂ = 0.4; two positive advantages count once."""
    advantages = (torch.tensor([value - 0.5]) for value in (data_value, generated_value))
    found, counts = a2pr.advantageous(DATA, GENERATED, *advantages)
    assert torch.equal(found, target) and counts.item() == weight
    assert float(0.4 * behaviour_distance(ACTION, found, counts)) == pytest.approx(loss)


def test_the_chosen_target_has_the_larger_advantage():
    rng = generator(0, "a")
    data, generated = torch.zeros(500, 1), torch.ones(500, 1)
    data_advantage, generated_advantage = torch.randn(2, 500, generator=rng)
    target, weight = a2pr.advantageous(data, generated, data_advantage, generated_advantage)
    chosen = torch.where(target[:, 0] == 1.0, generated_advantage, data_advantage)
    assert torch.equal(chosen, torch.maximum(data_advantage, generated_advantage))
    assert torch.equal(weight.bool(), chosen > 0.0)


def test_the_divergence_by_hand():
    found = latent_divergence(torch.tensor([[0.1, -0.2]]), torch.tensor([[0.5, 1.5]]))
    assert float(found) == pytest.approx(0.281341, abs=1e-5)
    assert float(latent_divergence(torch.zeros(3, 2), torch.ones(3, 2))) == 0.0


def test_without_advantage_only_the_divergence_trains():
    rebuilt = torch.randn(8, 2, generator=generator(0, "r"), requires_grad=True)
    loss = a2pr.reconstruction_loss(rebuilt, torch.zeros(8, 2), torch.linspace(-1.0, 0.0, 8))
    loss.backward()
    assert loss.item() == 0.0 and not rebuilt.grad.any()
    one = a2pr.reconstruction_loss(rebuilt, torch.zeros(8, 2), torch.tensor([1.0, *[-1.0] * 7]))
    assert one.item() == pytest.approx(rebuilt[0].square().sum().item() / 16)


def small(method):
    updates = tuple(replace(u, model=replace(u.model, width=8, layers=2)) for u in method.updates())
    return replace(method, rounds=(Round(updates=updates),), batch=16).learner(Checker(logged=300), seed=0)


def actor_loss(learner, regularizer, batch):
    actor = replace(DeterministicPolicy(value_weight=2.5), regularizer=regularizer)
    return actor.loss(learner.agent, batch, generator(0, "l")).value


class Always(a2pr.AdvantageousData):
    """Its mask forced to 1."""

    def __call__(self, agent, batch, action, rng):
        target, weight = super().__call__(agent, batch, action, rng)
        return target, torch.ones_like(weight)


def test_reductions_to_td3_and_td3_bc():
    learner = small(a2pr.method())
    batch = learner.memory.sample(32, generator(0, "b"))
    q = first_values(learner.agent, batch.observation, learner.agent["actor"](batch.observation))
    without = actor_loss(learner, BehaviourRegularizer(target=a2pr.AdvantageGuided(), weight=0.0), batch)
    assert torch.allclose(without, -2.5 * q.mean() / q.abs().mean())
    forced = actor_loss(learner, BehaviourRegularizer(target=Always()), batch)
    assert torch.equal(forced, actor_loss(learner, list(td3_bc.method().updates())[1].regularizer, batch))


def test_the_value_s_target_is_the_least_of_all_four():
    learner = small(a2pr.method())
    for _ in range(4):
        learner.step()
    batch, agent = learner.memory.sample(32, generator(0, "b")), learner.agent
    value = next(u for u in learner.method.updates() if u.trains == "value")
    action = value.critic.next_action(agent, batch.next_observation, generator(0, "l"))
    going_on = 0.99 * (1.0 - batch.terminated.float())
    y, y2 = (batch.reward + going_on * agent[n](batch.next_observation, action).amin(0) for n in ("target", "critic"))
    wanted = (agent["value"](batch.observation) - torch.minimum(y, y2).detach()).square().mean()
    assert torch.allclose(value.loss(agent, batch, generator(0, "l")).value, wanted)


@pytest.mark.parametrize(("detached", "same"), [(False, False), (True, True)])
def test_gradient_flows_through_the_generated_action_unless_detached(detached, same):
    learner = small(a2pr.method())
    batch = learner.memory.sample(32, generator(0, "b"))
    action = learner.agent["actor"](batch.observation).detach().requires_grad_()
    guided = a2pr.AdvantageGuided(detached=detached)
    target, _ = guided(learner.agent, batch, action, generator(0, "l"))
    behaviour_distance(action, target).backward()
    plain = 2.0 * (action - target).detach() / action.numel()
    assert torch.allclose(action.grad, plain) is same


def test_the_prior_does_not_see_the_policy_s_action():
    learner = small(a2pr.prior())
    vae, seen = learner.agent["vae"], torch.zeros(2000, 2)
    one = vae.sample(seen, generator(0, "s"))
    assert torch.equal(one, vae.sample(seen, generator(0, "s"))) and one.abs().max() <= 1.0
    batch = learner.memory.sample(16, generator(0, "b"))
    guided = next(u for u in learner.method.updates() if u.trains == "actor").regularizer.target
    targets = [guided(learner.agent, batch, torch.full((16, 2), a), generator(0, "l"))[0] for a in (-1.0, 1.0)]
    assert torch.equal(*targets)


@pytest.mark.parametrize("variant", ["method", *(v.replace("-", "_") for v in a2pr.VARIANTS)])
def test_every_variant_trains(variant):
    metrics = small(getattr(a2pr, variant)()).step()
    assert {"loss/value", "loss/state_value"} <= metrics.keys()
    assert ("loss/reconstruction" in metrics) is (variant != "data_only")


def test_the_authors_settings():
    sizes = [u.model.layers for u in a2pr.method().updates()]
    assert sizes == [4, 2, 3, 4]
    assert ActionAutoencoder().width == 750
    actors = [next(u for u in m.updates() if u.trains == "actor") for m in (a2pr.halfcheetah(), a2pr.hopper())]
    assert [(a.value_weight, a.regularizer.weight) for a in actors] == [(40.0, 1.0), (2.5, 0.4)]
    assert {u.gamma for u in a2pr.hopper().updates() if u.trains == "critic"} == {0.995}
    with pytest.raises(ValueError, match="an autoencoder needs positive sizes"):
        ActionAutoencoder(width=0)
