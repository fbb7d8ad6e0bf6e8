from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from matching import Match
from policyopt.learners.off_policy import Round, SoftCritic, SoftPolicy, Temperature
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.update import Adam
from policyopt.methods import pmoe
from policyopt.models.mixture import MixtureMLP, TanhMixture, of_expert
from policyopt.models.q_functions import QFunctions
from policyopt.models.soft_actor import TanhGaussian
from policyopt.problems.control.multi_goal import MultiGoal
from policyopt.rollouts.replay import Interaction
from policyopt.rollouts.vector import Vector
from policyopt.types import generator

GATINGS = {"frequency": pmoe.Frequency(), "gumbel": pmoe.GumbelSoftmax(), "score-ratio": pmoe.ScoreRatio()}
gatings = pytest.mark.parametrize("gating", GATINGS.values(), ids=GATINGS.keys())


def small(gating, experts=3):
    method = pmoe.on_sac(gating)
    critic, actor, temperature = method.updates()
    updates = (
        replace(critic, model=QFunctions(width=8)),
        replace(actor, model=TanhMixture(width=8, experts=experts)),
        temperature,
    )
    collector = Interaction(environments=2, warm_up=8)
    return replace(method, rounds=(Round(updates=updates),), batch=16, collector=collector)


PPO = replace(
    pmoe.ppo(),
    policy=MixtureMLP(hidden=(8,), experts=3),
    collector=Vector(environments=4, steps=16),
    minibatches=2,
    epochs=2,
)


def trained(method, steps=8):
    learner = method.learner(MultiGoal(), seed=0)
    for _ in range(steps):
        learner.step()
    return learner


# -- the frequency loss


def test_frequency_loss_by_hand():
    weights = torch.tensor([[0.2, 0.5, 0.3]], requires_grad=True)
    loss = pmoe.frequency_loss(weights, torch.tensor([2]))
    assert loss.item() == pytest.approx(0.26) and 3 * loss.item() == pytest.approx(0.78)
    slope = torch.autograd.grad(loss, weights)[0]
    assert slope[0].tolist() == pytest.approx([0.133333, 0.333333, -0.466667], abs=1e-6)
    logits = weights.detach().log().requires_grad_()
    through = torch.autograd.grad(pmoe.frequency_loss(logits.softmax(-1), torch.tensor([2])), logits)[0]
    assert through[0].tolist() == pytest.approx([0.016, 0.14, -0.156], abs=1e-6)


def test_its_minimum_is_the_frequency_of_being_best():
    best = torch.tensor([0, 1, 1, 1])

    def loss(share):
        return pmoe.frequency_loss(torch.tensor([[share, 1.0 - share]]).expand(4, 2), best).item()

    assert all(loss(0.25) < loss(other) for other in (0.0, 0.2, 0.24, 0.26, 0.3, 0.5, 1.0))


def test_with_one_expert_it_is_zero():
    assert pmoe.frequency_loss(torch.randn(5, 1).softmax(-1), torch.zeros(5, dtype=torch.int64)).item() == 0.0


# -- on SAC


@gatings
def test_one_expert_is_soft_actor_critic(gating):
    learner = trained(small(gating, experts=1))
    agent, batch = learner.agent, learner.memory.sample(16, generator(0, "b"))
    plain = TanhGaussian(width=8).build(2, 2, 0)
    plain.layers.load_state_dict(agent["actor"].layers.state_dict())
    mixture = dict(zip(("critic", "actor", "temperature"), small(gating, experts=1).updates(), strict=True))
    for name, update in (("critic", SoftCritic()), ("actor", SoftPolicy()), ("temperature", Temperature())):
        one = mixture[name].loss(agent, batch, generator(0, "u"))
        kept, agent["actor"] = agent["actor"], plain
        two = update.loss(agent, batch, generator(0, "u"))
        agent["actor"] = kept
        assert one.value.item() == pytest.approx(two.value.item(), rel=1e-5, abs=1e-6)
        if name == "actor":
            pairs = zip(
                torch.autograd.grad(one.value, list(kept.layers.parameters())),
                torch.autograd.grad(two.value, list(plain.layers.parameters())),
                strict=True,
            )
            assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def made(agent, batch, rng):
    """Proposals from leaves, so that gradients with respect to the heads can be read."""
    actor = agent["actor"]
    mean, log_deviation = (x.detach().requires_grad_() for x in actor(batch.observation))
    logits = actor.gate(batch.observation).detach().requires_grad_()
    noise = torch.randn(mean.shape, generator=rng)
    actions, logp = pmoe_tanh(mean, log_deviation, noise)
    critic = agent["critic"]
    proposals = pmoe.Proposals(observation=batch.observation, actions=actions, logp=logp, logits=logits, critic=critic)
    return proposals, mean, log_deviation, logits


def pmoe_tanh(mean, log_deviation, noise):
    u = mean + log_deviation.exp() * noise
    gaussian = torch.distributions.Normal(mean, log_deviation.exp()).log_prob(u)
    return u.tanh(), (gaussian - torch.log(1 - u.tanh() ** 2)).sum(-1)


def test_only_the_best_expert_has_a_policy_gradient_and_the_weights_only_the_frequency_loss():
    learner = trained(small(GATINGS["frequency"]))
    agent, batch = learner.agent, learner.memory.sample(64, generator(0, "b"))
    proposals, mean, log_deviation, logits = made(agent, batch, generator(0, "u"))
    values = torch.stack(
        [torch.minimum(*agent["critic"](batch.observation, proposals.actions[:, k])) for k in range(3)], 1
    )
    best = values.argmax(1)
    loss, logp = pmoe.Frequency()(proposals, torch.tensor(0.3), generator(0, "g"))
    wanted = (0.3 * of_expert(proposals.logp, best) - values.max(1).values).mean() + pmoe.frequency_loss(
        logits.softmax(-1), best
    )
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    assert torch.equal(logp, of_expert(proposals.logp, best)) and best.unique().numel() > 1
    others = torch.ones(64, 3, dtype=torch.bool).scatter(1, best[:, None], False)
    slopes = torch.autograd.grad(loss, [mean, log_deviation, logits], retain_graph=True)
    for slope in slopes[:2]:
        assert (slope[others] == 0.0).all() and (of_expert(slope, best) != 0.0).any(-1).all()
    frequency = pmoe.frequency_loss(logits.softmax(-1), best)
    assert torch.allclose(slopes[2], torch.autograd.grad(frequency, logits)[0])
    assert all(g is None for g in torch.autograd.grad(frequency, [mean, log_deviation], allow_unused=True))


def test_the_temperature_follows_the_best_expert():
    learner = trained(small(GATINGS["frequency"]))
    agent, batch = learner.agent, learner.memory.sample(64, generator(0, "b"))
    actions, logp = agent["actor"].propose(batch.observation, generator(0, "u"))
    values = torch.stack([torch.minimum(*agent["critic"](batch.observation, actions[:, k])) for k in range(3)], 1)
    loss = learner.method.rounds[0].updates[2].loss(agent, batch, generator(0, "u"))
    wanted = -agent["temperature"].log * (of_expert(logp, values.argmax(1)).mean() - 2.0)
    assert loss.value.item() == pytest.approx(wanted.item(), abs=1e-5)


def test_the_critic_s_target_is_of_a_sampled_expert_without_its_weight():
    learner = trained(small(GATINGS["frequency"]))
    agent, batch = learner.agent, learner.memory.sample(16, generator(0, "b"))
    critic = learner.method.rounds[0].updates[0]
    with torch.no_grad():
        action, logp = agent["actor"].sample(batch.next_observation, generator(0, "u"))
        every, density = agent["actor"].propose(batch.next_observation, generator(0, "u"))
        least = torch.minimum(*agent["target"](batch.next_observation, action))
        wanted = batch.reward + 0.99 * (1 - batch.terminated.float()) * (least - agent["temperature"]() * logp)
    assert torch.equal(density[(every == action[:, None]).all(-1)], logp)
    assert torch.allclose(critic.target(agent, batch, generator(0, "u")), wanted, atol=1e-6)


def test_gumbel_straight_through_chooses_one_expert_as_often_as_it_weighs():
    learner = trained(small(GATINGS["gumbel"]))
    agent, batch = learner.agent, learner.memory.sample(3000, generator(0, "b"))
    proposals, mean, _, logits = made(agent, batch, generator(0, "u"))
    loss, logp = pmoe.GumbelSoftmax()(proposals, torch.tensor(0.3), generator(0, "g"))
    chosen = (proposals.logp - logp[:, None]).abs() < 1e-5
    assert (chosen.sum(1) == 1).all()
    assert torch.allclose(chosen.float().mean(0), logits.softmax(-1).mean(0), atol=0.04)
    values = [torch.minimum(*agent["critic"](batch.observation, proposals.actions[:, k])) for k in range(3)]
    wanted = (0.3 * logp - torch.stack(values, 1)[chosen]).mean()
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-4)
    slope, means = torch.autograd.grad(loss, [logits, mean])
    assert slope.abs().max() > 0.0 and (means[~chosen] == 0.0).all()


def test_gumbel_relaxed_is_a_blend_that_hardens():
    learner = trained(small(GATINGS["gumbel"]))
    agent, batch = learner.agent, learner.memory.sample(50, generator(0, "b"))
    proposals, *_ = made(agent, batch, generator(0, "u"))
    nearest = []
    for softness in (1.0, 1e-3):
        gating = pmoe.GumbelSoftmax(softness=softness, straight_through=False)
        _, logp = gating(proposals, torch.tensor(0.3), generator(0, "g"))
        nearest.append((proposals.logp - logp[:, None]).abs().min(1).values.mean().item())
    assert nearest[1] < 0.05 * nearest[0]


def test_the_score_function_s_mean_is_the_gradient_of_the_expected_value():
    learner = trained(small(GATINGS["score-ratio"]))
    agent, batch = learner.agent, learner.memory.sample(1, generator(0, "b"))
    rows = batch[torch.zeros(20_000, dtype=torch.int64)]
    proposals, *_, logits = made(agent, batch, generator(0, "u"))
    spread = torch.tensor([[[-0.9, 0.1], [0.2, 0.4], [0.9, -0.9]]])
    many = pmoe.Proposals(
        observation=rows.observation,
        actions=spread.expand(20_000, 3, 2),
        logp=torch.zeros(20_000, 3),
        logits=logits.expand(20_000, 3),
        critic=agent["critic"],
    )
    loss, _ = pmoe.ScoreRatio()(many, torch.tensor(0.0), generator(0, "g"))
    found = torch.autograd.grad(loss, logits)[0]
    value = many.values()[:1].detach()
    wanted = torch.autograd.grad(-(logits.softmax(-1) * value).sum(), logits)[0]
    assert torch.allclose(found, wanted, atol=0.1 * wanted.abs().max().item())
    assert proposals.values().shape == (1, 3)


@gatings
def test_a_resumed_learner_goes_on_bit_by_bit(gating):
    resumes(small(gating))


def resumes(method):
    first, second = (method.learner(MultiGoal(), seed=3) for _ in range(2))
    for _ in range(6):
        first.step()
    second.load_state_dict(deepcopy(first.state_dict()))
    for _ in range(2):
        one, two = first.step(), second.step()
        assert {k: float(v) for k, v in one.items()} == {k: float(v) for k, v in two.items()}


def test_it_learns_to_answer():
    adam = Adam(learning_rate=3e-3, gradient_clip=None)
    critic, actor, temperature = (replace(u, optimizer=adam) for u in small(GATINGS["frequency"], 2).updates())
    critic, temperature = replace(critic, model=QFunctions(width=16)), replace(temperature, initial=0.1)
    method = replace(
        pmoe.method(),
        rounds=(Round(updates=(critic, actor, temperature)),),
        collector=Interaction(environments=8, warm_up=128),
        batch=32,
    )
    problem = Match(episodes=200)
    learner = method.learner(problem, seed=0)
    before = problem.evaluate(learner.policy.act, generator(0, "e"))["eval/return"]
    for _ in range(300):
        learner.step()
    assert before < -0.5 < -0.25 < problem.evaluate(learner.policy.act, generator(0, "e"))["eval/return"]


# -- on PPO


def test_action_values_are_fitted_to_the_returns():
    method = replace(PPO, values_optimizer=Adam(learning_rate=3e-2), epochs=40, minibatches=1)
    learner = method.learner(MultiGoal(), seed=0)
    errors = []
    update = learner._update
    learner._update = lambda pieces, number: errors.append(update(pieces, number)) or errors[-1]
    learner.step()
    assert float(errors[-1]["loss/action_value"]) < 0.3 * float(errors[0]["loss/action_value"])


def test_the_update_is_ppo_s_plus_the_frequency_loss():
    method = replace(PPO, epochs=1, minibatches=1)
    learner = method.learner(MultiGoal(), seed=0)
    plain = OnPolicy(**{n: getattr(method, n) for n in OnPolicy.__dataclass_fields__}).learner(MultiGoal(), seed=0)
    losses = {}

    def spy(what, policy, optimizer):
        def step(total, clock):
            losses[what] = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in policy.parameters()]
            return original(total, clock)

        original, optimizer.step = optimizer.step, step

    spy("mixture", learner.policy, learner.optimizer), spy("plain", plain.policy, plain.optimizer)
    batch, update = [], learner._update
    learner._update = lambda pieces, number: batch.append(deepcopy(pieces["rollouts"])) or update(pieces, number)
    untouched = deepcopy(learner.policy), deepcopy(learner.values)
    learner.step(), plain.step()
    rollouts = batch[0]
    policy, values = untouched
    policy.standardization.load_state_dict(learner.policy.standardization.state_dict())
    seen = rollouts.observations.flatten(0, 1)
    logits, mean, log_deviation = policy.split(policy(seen))
    noise = torch.randn(mean.shape, generator=generator(0, "experts-0-0"))
    actions = mean + log_deviation.exp() * noise
    judged = torch.stack([values(policy.standardization(seen), actions[:, k])[0] for k in range(3)], 1)
    frequency = pmoe.frequency_loss(logits.softmax(-1), judged.argmax(1))
    slopes = torch.autograd.grad(frequency, list(policy.parameters()), allow_unused=True)
    for found, ppo, slope in zip(losses["mixture"], losses["plain"], slopes, strict=True):
        own = 0.0 if slope is None else slope
        assert torch.allclose(found, ppo + own, atol=1e-6)
    reached = {
        name for (name, _), s in zip(policy.named_parameters(), slopes, strict=True) if s is not None and bool(s.any())
    }
    assert {name.split(".")[0] for name in reached} == {"gate"}


def test_ppo_resumes_and_learns_to_answer():
    resumes(PPO)
    adam = Adam(learning_rate=1e-2, gradient_clip=0.5)
    method = replace(PPO, collector=Vector(environments=32, steps=8), epochs=4, optimizer=adam)
    learner = method.learner(Match(episodes=200), seed=0)
    before = learner.problem.evaluate(learner.policy.act, generator(0, "e"))["eval/return"]
    for _ in range(18):
        learner.step()
    after = learner.problem.evaluate(learner.policy.act, generator(0, "e"))["eval/return"]
    assert before < -0.5 < -0.25 < after


def test_settings():
    assert pmoe.method().rounds[0].updates[1].model.experts == 2 and pmoe.ppo().policy.experts == 5
    assert (pmoe.method().batch, pmoe.method().rounds[0].updates[0].polyak) == (300, 0.01)
    kinds = [type(m.rounds[0].updates[2]) for m in (pmoe.method(), pmoe.gumbel(), pmoe.score_ratio())]
    assert kinds == [pmoe.BestTemperature, Temperature, Temperature]
    with pytest.raises(ValueError, match="softness must be positive, got 0"):
        pmoe.GumbelSoftmax(softness=0.0)
