import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch.distributions import Categorical, Independent, Normal

from matching import Match
from policyopt.learners.acting import Exploring
from policyopt.learners.off_policy import LogTemperature, Round, SoftPolicy
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.update import Adam
from policyopt.methods import mdpo
from policyopt.models.control import MLP
from policyopt.models.q_functions import QFunctions
from policyopt.models.soft_actor import TanhGaussian
from policyopt.models.state_value import StateValues
from policyopt.problems.control.environments import GymnasiumProblem
from policyopt.problems.control.two_gap import TwoGap
from policyopt.rollouts.replay import Interaction
from policyopt.rollouts.vector import Vector
from policyopt.types import Rollouts, generator

SMALL = replace(mdpo.method(), policy=MLP(hidden=(8,)), collector=Vector(environments=4, steps=16), minibatches=2)
OFF = replace(
    mdpo.off(),
    rounds=(
        Round(
            updates=(
                mdpo.MirrorPolicy(model=TanhGaussian(width=8), steps=3),
                mdpo.BootstrappedCritic(model=QFunctions(width=8)),
                mdpo.SoftValue(model=StateValues(width=8)),
            )
        ),
    ),
    collector=Interaction(environments=2, warm_up=8),
    batch=16,
)


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()


def collected(learner):
    batch = learner.method.collector(learner.policy, learner.problem, learner.clock, learner.memories["collector"])
    return learner._credited(batch.batches["rollouts"])


def rows(observations, actions, logp, advantage):
    """A batch of single steps."""
    return Rollouts(
        actions=actions,
        mask=torch.ones(len(actions), 1, dtype=torch.bool),
        observations=observations,
        behaviour_logp=logp,
        advantage=advantage,
        batch_size=[len(actions)],
    )


def constant(policy, output):
    """The policy whose network gives ``output`` for every observation."""
    with torch.no_grad():
        policy.network[-1].weight.zero_()
        policy.network[-1].bias.copy_(torch.tensor(output))


# -- on-policy


def test_the_divergence_is_of_the_new_policy_from_the_old_one():
    learner = SMALL.learner(GymnasiumProblem(id="Pendulum-v1"), seed=0)
    constant(learner.policy, [0.5])
    learner.policy.log_deviation.data.fill_(math.log(0.8))
    old = Independent(Normal(torch.zeros(6, 1, 1), torch.ones(6, 1, 1)), 1)
    zeros = torch.zeros(6, 1)
    loss, divergence = learner.loss(old, rows(torch.randn(6, 1, 3), torch.randn(6, 1, 1), zeros, zeros))
    assert divergence.item() == pytest.approx(0.168144, abs=1e-6)  # the other direction: 0.253419
    assert loss.item() == pytest.approx(0.168144, abs=1e-6)
    learner.clock.share = 0.75
    assert learner.loss(old, rows(torch.randn(6, 1, 3), torch.randn(6, 1, 1), zeros, zeros))[0].item() == pytest.approx(
        4 * 0.168144, abs=1e-5
    )


def test_its_optimum_is_the_exponentiated_gradient_step():
    learner = replace(SMALL, policy=MLP(hidden=(8,), standardize=False)).learner(
        GymnasiumProblem(id="Acrobot-v1"), seed=0
    )
    learner.clock.share = 0.5
    old, advantage = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([1.0, 0.0, -1.0])
    action = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)[:, None]  # as often as π_old takes them
    batch = rows(torch.randn(10, 1, 6), action, old[action].log(), advantage[action])
    best = old * (0.5 * advantage).exp()
    best = best / best.sum()
    assert best.tolist() == pytest.approx([0.661783, 0.240835, 0.097382], abs=1e-6)
    constant(learner.policy, best.log().tolist())
    loss, _ = learner.loss(Categorical(probs=old.expand(10, 1, 3)), batch)
    assert loss.item() == pytest.approx(-0.439342, abs=1e-5)
    slope = torch.autograd.grad(loss, learner.policy.network[-1].bias)[0]
    assert slope.abs().max() < 1e-5
    for _ in range(5):
        constant(learner.policy, (best.log() + 0.3 * torch.randn(3)).tolist())
        assert learner.loss(Categorical(probs=old.expand(10, 1, 3)), batch)[0].item() > -0.439342


@pytest.mark.parametrize("problem", [GymnasiumProblem(id="CartPole-v1"), TwoGap()], ids=["categorical", "gaussian"])
def test_the_first_of_the_steps_is_the_policy_gradient(problem):
    learner = SMALL.learner(problem, seed=0)
    learner.step()
    batch, parameters = collected(learner), list(learner.policy.parameters())
    with torch.no_grad():
        old = learner.policy.distribution(batch.observations)
    loss, divergence = learner.loss(old, batch)
    found = torch.autograd.grad(loss, parameters, retain_graph=True)
    logp = learner.policy.evaluate(batch).logp
    wanted = torch.autograd.grad(-(batch.advantage * logp).mean(), parameters)
    assert all(g.abs().max() < 1e-6 for g in torch.autograd.grad(divergence, parameters))
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)


def test_one_step_is_the_plain_on_policy_learner_and_more_are_not():
    problem, shared = TwoGap(), {n: getattr(SMALL, n) for n in ("policy", "collector", "critic", "credit", "optimizer")}
    plain = OnPolicy(**shared).learner(problem, seed=0)
    plain.step()
    for steps, same in ((1, True), (3, False)):
        learner = replace(SMALL, steps=steps).learner(problem, seed=0)
        learner.step()
        assert torch.allclose(flat(learner.policy), flat(plain.policy), atol=1e-7) is same


def test_the_step_size_falls_with_the_budget_and_never_to_zero():
    learner = SMALL.learner(TwoGap(), seed=0)
    for share, wanted in ((0.0, 1.0), (0.5, 0.5), (0.99, 0.01), (1.0, 1e-3), (1.2, 1e-3)):
        learner.clock.share = share
        assert learner.step_size() == pytest.approx(wanted)


def test_more_weight_on_the_divergence_keeps_the_policy_nearer():
    moved = []
    for share in (0.0, 0.999):
        fast = Adam(learning_rate=3e-3)
        learner = replace(SMALL, optimizer=fast, steps=60).learner(TwoGap(), seed=0)
        batch = collected(learner)
        learner.clock.share = share
        moved.append(float(learner._improve({"rollouts": batch})["policy/divergence"]))
    assert 0.0 <= moved[1] < 0.2 * moved[0]


def test_tsallis_on_policy_compares_the_batch_s_actions():
    learner = replace(SMALL, tsallis=1.5).learner(TwoGap(), seed=0)
    batch = collected(learner)
    learner._improve({"rollouts": batch})
    _, divergence = learner.loss(None, batch)
    p, old = learner.policy.evaluate(batch).logp.exp(), batch.behaviour_logp.exp()
    assert divergence.item() == pytest.approx((2 * (p.sqrt() - 1) - 2 * (old.sqrt() - 1)).mean().item(), abs=1e-6)


def test_it_learns_to_balance():
    adam = Adam(learning_rate=3e-3, gradient_clip=0.5, epsilon=1e-5)
    method = replace(mdpo.method(), collector=Vector(environments=8, steps=64), minibatches=4, optimizer=adam, steps=10)
    learner = method.learner(GymnasiumProblem(id="CartPole-v1"), seed=0)
    steps = [learner.step() for _ in range(14)]
    returns = [step["episode/return"] for step in steps if "episode/return" in step]
    assert returns[0] < 40.0 < 80.0 < max(returns[-3:])


# -- the Tsallis logarithm


def test_tsallis_logarithm():
    half = torch.tensor(0.5).log()
    for q, wanted in ((1.0, -0.693147), (0.5, -0.585786), (0.0, -0.5)):
        assert mdpo.tsallis_log(half, q).item() == pytest.approx(wanted, abs=1e-6)
    assert mdpo.tsallis_log(half, 1.0 - 1e-4).item() == pytest.approx(half.item(), abs=1e-4)


# -- off-policy


def test_actor_loss_by_hand():
    logp, old, value = torch.tensor([[-0.5, -0.8]]), torch.tensor([[-1.0, -0.7]]), torch.tensor([2.5])
    assert mdpo.mirror_loss(logp, old, value, 0.2, 1.0).item() == pytest.approx(-2.44)
    assert mdpo.mirror_loss(logp, old, value, 0.2, 0.2).item() == pytest.approx(-2.76)  # soft actor-critic's
    sqrt = 1.0 * 2 * (math.exp(-0.25) + math.exp(-0.4) - 2) + 1.5 * -0.8 * 2 * (math.exp(-0.5) + math.exp(-0.35) - 2)
    assert mdpo.mirror_loss(logp, old, value, 0.2, 1.0, tsallis=1.5).item() == pytest.approx(sqrt - 2.5)


@pytest.mark.parametrize("weight", [0.1, 1.0, 7.0])
def test_without_entropy_an_unmoved_policy_has_no_divergence(weight):
    logp = torch.randn(50, 3)
    each = mdpo.mirror_loss(logp, logp, torch.zeros(50), 0.0, weight)
    assert each.abs().max() < 1e-5


def trained(steps=6, method=OFF):
    learner = method.learner(TwoGap(), seed=0)
    for _ in range(steps):
        learner.step()
    return learner


def test_equal_weights_give_the_actor_of_soft_actor_critic():
    learner = trained()
    agent, batch = learner.agent, learner.memory.sample(16, generator(0, "b"))
    learner.agent["temperature"] = LogTemperature(0.2)
    with torch.no_grad():  # SAC takes the least value: two equal heads
        for parameter in agent["critic"].parameters():
            parameter[1] = parameter[0]
    mirror = replace(OFF.rounds[0].updates[0], divergence_weight=0.2, penalty=0.0)
    one, two = (u.loss(agent, batch, generator(0, "u")).value for u in (mirror, SoftPolicy()))
    assert one.item() == pytest.approx(two.item(), abs=1e-5)
    parameters = list(agent["actor"].parameters())
    pairs = zip(torch.autograd.grad(one, parameters), torch.autograd.grad(two, parameters), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_actor_loss_is_the_formula_and_flows_through_the_action():
    learner = trained()
    agent, batch, update = learner.agent, learner.memory.sample(16, generator(0, "b")), OFF.rounds[0].updates[0]
    assert not torch.equal(flat(agent["actor"]), flat(agent["old_actor"]))
    agent["old_actor"].requires_grad_(True)
    loss = update.loss(agent, batch, generator(0, "u")).value
    mean, log_deviation = agent["actor"](batch.observation)
    u = mean + log_deviation.exp() * torch.randn(16, 2, generator=generator(0, "u"))
    density = lambda m, s: (Normal(m, s.exp()).log_prob(u) - torch.log(1 - u.tanh() ** 2)).sum(-1)  # noqa: E731
    logp, old = density(mean, log_deviation), density(*agent["old_actor"].actor(batch.observation))
    first = agent["critic"](batch.observation, u.tanh())[0]
    wanted = (logp - old + 0.2 * old - first).mean() + 1e-3 * ((mean**2).mean() + (log_deviation**2).mean())
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-4)
    actor = list(agent["actor"].parameters())
    for one, two in zip(torch.autograd.grad(loss, actor), torch.autograd.grad(wanted, actor), strict=True):
        assert torch.allclose(one, two, atol=1e-4)


def test_values_aim_at_the_soft_value_and_critics_at_its_slow_copy():
    learner = trained()
    agent, batch = learner.agent, learner.memory.sample(16, generator(0, "b"))
    _, critic, value = OFF.rounds[0].updates
    with torch.no_grad():
        action, logp = agent["actor"].sample(batch.observation, generator(0, "u"))
        soft = torch.minimum(*agent["critic"](batch.observation, action)) - 0.2 * logp
        following = agent["value_target"](batch.next_observation)
    assert value.target(agent, batch, generator(0, "u")).tolist() == pytest.approx(soft.tolist(), abs=1e-5)
    wanted = batch.reward + 0.99 * (1.0 - batch.terminated.float()) * following
    assert torch.equal(critic.target(agent, batch, generator(0, "u")), wanted)
    loss = value.loss(agent, batch, generator(0, "u")).value
    assert loss.item() == pytest.approx(
        0.5 * (agent["value"](batch.observation) - soft).square().mean().item(), rel=1e-4
    )
    before, fast = flat(agent["value_target"]), flat(agent["value"])
    value.finish(agent)
    assert torch.allclose(flat(agent["value_target"]), before + 0.005 * (fast - before), atol=1e-7)
    assert "target" not in agent


def test_the_old_actor_is_renewed_every_so_many_updates():
    learner = OFF.learner(TwoGap(), seed=0)
    same = []
    for _ in range(10):  # updates begin at the fifth step
        learner.step()
        same.append(torch.equal(flat(learner.agent["actor"]), flat(learner.agent["old_actor"])))
    assert same == [True, True, True, True, False, False, True, False, False, True]


def test_a_resumed_learner_goes_on_bit_by_bit():
    for method in (SMALL, OFF):
        first, second = (method.learner(TwoGap(), seed=3) for _ in range(2))
        for _ in range(5):
            first.step()
        second.load_state_dict(deepcopy(first.state_dict()))
        for _ in range(3):
            one, two = first.step(), second.step()
            assert {k: float(v) for k, v in one.items()} == {k: float(v) for k, v in two.items()}


def test_off_policy_learns_to_answer():
    adam = Adam(learning_rate=3e-3, gradient_clip=None)
    updates = [replace(u, optimizer=adam, model=replace(u.model, width=16)) for u in OFF.rounds[0].updates]
    actor = replace(updates[0], steps=10)
    method = replace(
        OFF,
        rounds=(Round(updates=(actor, *updates[1:])),),
        collector=Interaction(environments=8, warm_up=128),
        batch=32,
    )
    problem = Match(episodes=200)
    learner = method.learner(problem, seed=0)
    before = problem.evaluate(learner.policy.act, generator(0, "e"))["eval/return"]
    for _ in range(350):
        learner.step()
    assert before < -0.5 < -0.25 < problem.evaluate(learner.policy.act, generator(0, "e"))["eval/return"]


def test_settings():
    method = mdpo.method()
    assert (method.steps, method.tsallis, method.epochs, method.critic.clip) == (10, 1.0, 5, 0.2)
    assert method.collector.environments * method.collector.steps == 2048
    actor, critic, value = mdpo.off().updates()
    assert (actor.steps, actor.entropy_weight, actor.divergence_weight) == (1000, value.entropy_weight, 1.0)
    assert (critic.gamma, value.polyak, mdpo.off().batch) == (0.99, 0.005, 256)
    released = replace(OFF, acting=Exploring(noise=0.0)).learner(TwoGap(), seed=0)
    observation = torch.zeros(3, 2)
    action, _, _ = released.policy.act(observation, None, generator(0, "a"))
    assert torch.equal(action, released.agent["actor"].mode(observation))


def test_bad_settings():
    with pytest.raises(ValueError, match="steps and tsallis must be positive, got 0"):
        replace(SMALL, steps=0)
    with pytest.raises(ValueError, match="divergence_weight and tsallis must be positive, got 10, 0 and 1"):
        mdpo.MirrorPolicy(steps=10, divergence_weight=0.0)
    with pytest.raises(ValueError, match="weights must not be negative"):
        mdpo.MirrorPolicy(entropy_weight=-0.1)
