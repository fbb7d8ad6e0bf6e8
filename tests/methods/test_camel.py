"""CAMEL: masks by hand, TD3 where there is no mask, what is executed and remembered, and how the mask goes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from policyopt import registry
from policyopt.learners.off_policy import Round, SmoothedCritic
from policyopt.methods import camel, td3
from policyopt.methods.camel import AdaptiveAnnealing, Annealing, LinearAnnealing, MaskedActor, MaskedCritic
from policyopt.models.action_mask import (
    ActionMask,
    Bernoulli,
    Clip,
    Envelope,
    Interval,
    Rescale,
    Share,
    around,
    clipped,
    outside,
    rescaled,
    spanned,
)
from policyopt.models.bounded_actors import Bounded
from policyopt.models.priors import Batched, Expert, PriorPolicy, load, suggested
from policyopt.models.q_functions import QFunctions
from policyopt.problems.control.environments import GymnasiumProblem
from policyopt.problems.control.rules import RULES
from policyopt.rollouts.replay import Interaction
from policyopt.types import Budget, Clock, generator

PRIOR, ACTION = torch.tensor([[0.8, -0.3]]), torch.tensor([[-0.5, 0.5]])
LOWER, UPPER = around(PRIOR, 0.4)
PENDULUM = GymnasiumProblem(id="Pendulum-v1", episodes=2)


def near(tensor, numbers):
    return torch.allclose(tensor, torch.tensor(numbers), atol=1e-6)


# The mask by hand


def test_interval_clip_and_rescale_by_hand():
    assert near(LOWER, [[0.4, -0.7]]) and near(UPPER, [[1.0, 0.1]])
    assert near(clipped(ACTION, LOWER, UPPER), [[0.4, 0.1]])
    assert near(rescaled(ACTION, LOWER, UPPER), [[0.55, -0.1]])


def test_a_box_in_other_units():
    lower, upper = around(torch.tensor([3.0]), 1.0, 0.0, 4.0)
    assert near(lower, [2.0]) and near(upper, [4.0])
    assert near(rescaled(torch.tensor([0.0, 1.0, 4.0]), lower, upper, 0.0, 4.0), [2.0, 2.5, 4.0])


def test_interpolation_by_hand():
    lower, upper = Share()(LOWER, UPPER, 0.5, generator(0, "x"))
    assert near(lower, [[-0.3, -0.85]]) and near(upper, [[1.0, 0.55]])
    assert near(clipped(ACTION, lower, upper), [[-0.3, 0.5]])
    for map_ in (Rescale(), Clip()):
        assert torch.equal(map_(ACTION, *Share()(LOWER, UPPER, 0.0, generator(0, "x"))), ACTION)
    for got, whole in zip(Share()(LOWER, UPPER, 1.0, generator(0, "x")), (LOWER, UPPER), strict=True):
        assert torch.equal(got, whole)


def test_gradients_of_the_maps():
    for map_, slope in ((Rescale(), [[0.3, 0.4]]), (Clip(), [[0.0, 0.0]])):
        action = ACTION.clone().requires_grad_()
        map_(action, LOWER, UPPER).sum().backward()
        assert near(action.grad, slope)


def test_the_penalty_pulls_back_what_clip_cannot():
    assert float(outside(ACTION, LOWER, UPPER)) == pytest.approx((0.9**2 + 0.4**2) / 2)
    action = ACTION.clone().requires_grad_()
    Clip(outside=2.0).penalty(action, LOWER, UPPER).backward()
    assert near(action.grad, [[-2 * 0.9, 2 * 0.4]])
    assert float(Rescale().penalty(ACTION, LOWER, UPPER)) == 0.0


def test_an_envelope_spans_its_priors_and_has_a_least_width():
    priors = torch.tensor([[[0.5, 0.1]], [[-0.2, 0.12]]])
    lower, upper = spanned(priors, 0.1)
    assert near(lower, [[-0.2, 0.01]]) and near(upper, [[0.5, 0.21]])


def test_whatever_the_prior_actions_stay_in_interval_and_box():
    rng = generator(0, "many")
    priors, action = (
        (6 * torch.rand(2, 500, 3, generator=rng) - 3).clamp(-1, 1),
        2 * torch.rand(500, 3, generator=rng) - 1,
    )
    for interval, seen in ((Interval(half_width=0.3), priors[:1]), (Envelope(), priors)):
        for share in (Share(), Bernoulli()):
            lower, upper = share(*interval(seen), 0.6, rng)
            assert bool((lower <= upper).all()) and float(lower.min()) >= -1.0 and float(upper.max()) <= 1.0
            for map_ in (Rescale(), Clip()):
                done = map_(action, lower, upper)
                assert bool((done >= lower - 1e-6).all() and (done <= upper + 1e-6).all())


def test_bernoulli_masks_whole_rows_in_proportion():
    lower, upper = LOWER.expand(20_000, 2), UPPER.expand(20_000, 2)
    drawn, _ = Bernoulli()(lower, upper, 0.3, generator(0, "rows"))
    masked = (drawn == lower).all(1)
    assert bool((masked | (drawn == -1.0).all(1)).all()) and float(masked.float().mean()) == pytest.approx(
        0.3, abs=0.02
    )


def test_schedules():
    mask = ActionMask((), PENDULUM.spaces, Interval(), Rescale(), Share())
    clock, annealing, budget = Clock(), LinearAnnealing(until=0.3), Budget(env_steps=20_000)
    for steps, epsilon in ((0, 1.0), (3000, 0.5), (6000, 0.0), (9000, 0.0)):
        clock.share = budget.share({"env_steps": steps})
        assert annealing(mask, clock) == pytest.approx(epsilon)
    assert Annealing(epsilon=0.4)(mask, clock) == 0.4


# Priors


def fine(observation):
    return [2.0 * observation[0]]


def failing(observation):
    return [1.0 / 0.0] if observation[1] > 0 else [float("nan")] if observation[1] < -0.5 else [0.5]


SEEN = torch.tensor([[0.5, 0.0, 0.0], [0.2, 0.3, 0.0], [0.1, -0.8, 0.0]])


def test_priors_speak_the_environment_s_units():
    assert near(suggested(fine, SEEN, PENDULUM.spaces), [[0.5], [0.2], [0.1]])
    batched = Batched(lambda rows: 20.0 * rows[:, :1])
    assert near(suggested(batched, SEEN, PENDULUM.spaces), [[1.0], [1.0], [1.0]])
    with pytest.raises(ValueError, match="expected"):
        suggested(Batched(lambda rows: rows), SEEN, PENDULUM.spaces)


def test_where_a_prior_fails_there_is_no_mask():
    found = suggested(failing, SEEN, PENDULUM.spaces)
    assert found.isnan()[:, 0].tolist() == [False, True, True]
    mask = ActionMask((failing,), PENDULUM.spaces, Interval(), Rescale(), Share())
    lower, upper = mask.bounds(SEEN, generator(0, "x"))
    assert near(lower, [[-0.15], [-1.0], [-1.0]]) and near(upper, [[0.65], [1.0], [1.0]])


def test_a_prior_is_found_by_name(tmp_path):
    file = tmp_path / "rule.py"
    file.write_text("def policy(obs):\n    return [obs[0]]\n")
    assert load(f"{file}:policy")([3.0]) == [3.0]
    assert load("policyopt.problems.control.rules:pendulum") is RULES["gym-Pendulum-v1"]
    for source, said in (
        ("rule.py", "file.py:function"),
        (f"{file}:polcy", "policy"),
        ("nowhere:f", "cannot be loaded"),
    ):
        with pytest.raises(ValueError, match=said):
            load(source)


def test_an_expert_is_a_trained_policy():
    class Fixed:
        def act(self, observation, memory, rng, greedy=False):
            return 0.25 * torch.ones(len(observation), 1), {}, memory

    expert = Expert(Fixed(), PENDULUM.spaces)
    assert expert(SEEN.numpy()).tolist() == [[0.5]] * 3
    assert near(suggested(expert, SEEN, PENDULUM.spaces), [[0.25]] * 3)


def test_screening_drops_what_fails_and_what_is_worse_than_chance():
    good, bad = Batched(RULES["gym-Pendulum-v1"]), Batched(lambda rows: -RULES["gym-Pendulum-v1"](rows))
    problem = GymnasiumProblem(id="Pendulum-v1", episodes=4)
    assert camel.screened((bad, failing, good), problem) == (good,)


@pytest.mark.parametrize("name", list(RULES))
def test_shipped_rules_beat_chance(name):
    problem = GymnasiumProblem(id=name.removeprefix("gym-"), episodes=10)
    rule = Batched(RULES[name])
    assert camel.screened((rule,), problem) == (rule,)


def test_the_rule_of_the_mountain_car_is_suboptimal():
    problem = GymnasiumProblem(id="MountainCarContinuous-v0", episodes=100)
    act = PriorPolicy(Batched(RULES["gym-MountainCarContinuous-v0"]), problem.spaces).act
    assert 25.0 < problem.evaluate(act, generator(1, "prior"))["eval/return"] < 55.0


# The agent


def small(method, **acting):
    updates = []
    for update in method.updates():
        model = QFunctions(width=8) if isinstance(update, SmoothedCritic) else Bounded(width=8)
        updates.append(replace(update, model=model))
    made = replace(method, rounds=(Round(updates=tuple(updates)),), batch=16)
    made = replace(made, collector=Interaction(environments=2, warm_up=4))
    return replace(made, acting=replace(made.acting, **acting)) if acting else made


def trained(method, steps=12, seed=0):
    learner = method.learner(PENDULUM, seed=seed, budget=Budget(env_steps=24))
    for _ in range(steps):
        learner.step()
    return learner


def same(learner, plain):
    """Weights, targets and memory agree bit for bit."""
    for name, module in plain.agent.items():
        for a, b in zip(module.parameters(), learner.agent[name].parameters(), strict=True):
            assert torch.equal(a, b), name
    for name, column in plain.memory.columns.items():
        assert torch.equal(column[: len(plain.memory)], learner.memory.columns[name][: len(plain.memory)])


@pytest.mark.parametrize("map_", [Rescale(), Clip()])
def test_a_mask_as_wide_as_the_box_is_td3_bit_for_bit(map_):
    same(trained(small(camel.method(), map=map_, interval=Interval(half_width=2.0))), trained(small(td3.method())))


@pytest.mark.parametrize("share", [Share(), Bernoulli()])
def test_without_any_share_it_is_td3_bit_for_bit(share):
    method = replace(small(camel.method(), share=share), annealing=Annealing(epsilon=0.0))
    same(trained(method), trained(small(td3.method())))


def test_with_a_mask_it_is_not():
    with pytest.raises(AssertionError):
        same(trained(small(camel.method())), trained(small(td3.method())))


def test_a_mask_without_width_executes_the_prior():
    learner = trained(replace(small(camel.method(), interval=Interval(half_width=1e-9)), annealing=Annealing()))
    memory = learner.memory.columns
    seen, done = (memory[name][: len(learner.memory)] for name in ("observation", "action"))
    wanted = suggested(Batched(RULES["gym-Pendulum-v1"]), seen, PENDULUM.spaces)
    assert torch.allclose(done, wanted, atol=1e-6)


@pytest.mark.parametrize("variant", ["camel", "camel:clip"])
def test_executed_actions_are_remembered_and_lie_in_the_mask(variant):
    learner = trained(replace(small(registry.method(variant)), annealing=Annealing()))
    memory = learner.memory.columns
    seen, done = (memory[name][: len(learner.memory)] for name in ("observation", "action"))
    lower, upper = learner.agent["mask"].bounds(seen, generator(0, "x"))
    assert bool((done >= lower - 1e-6).all() and (done <= upper + 1e-6).all())
    assert float((upper - lower).max()) < 0.9


def test_evaluation_is_without_a_mask():
    learner = trained(replace(small(camel.method()), annealing=Annealing()))
    action = learner.policy.act(SEEN, None, generator(0, "x"), True)[0]
    assert torch.equal(action, learner.agent["actor"].mode(SEEN).detach())


def masked_learner(map_, epsilon=0.7):
    learner = trained(replace(small(camel.method(), map=map_), annealing=Annealing(epsilon=epsilon)))
    return learner, learner.memory.sample(20, generator(0, "batch"))


def test_target_by_hand():
    learner, batch = masked_learner(Rescale())
    critic, agent = next(u for u in learner.method.updates() if isinstance(u, MaskedCritic)), learner.agent
    found = critic.target(agent, batch, generator(0, "t"))
    noise = (0.2 * torch.randn(20, 1, generator=generator(0, "t"))).clamp(-0.5, 0.5)
    with torch.no_grad():
        raw = (agent["actor_target"](batch.next_observation) + noise).clamp(-1, 1)
        prior = suggested(Batched(RULES["gym-Pendulum-v1"]), batch.next_observation, PENDULUM.spaces)
        lower, upper = (prior - 0.4).clamp(min=-1), (prior + 0.4).clamp(max=1)
        lower, upper = 0.7 * lower - 0.3, 0.7 * upper + 0.3
        action = lower + (raw + 1) / 2 * (upper - lower)
        least = agent["target"](batch.next_observation, action).amin(0)
    assert torch.allclose(found, batch.reward + 0.99 * (~batch.terminated) * least, atol=1e-5)


@pytest.mark.parametrize("map_", [Rescale(), Clip(outside=3.0)])
def test_actor_loss_by_hand(map_):
    learner, batch = masked_learner(map_)
    actor, agent = next(u for u in learner.method.updates() if isinstance(u, MaskedActor)), learner.agent
    found = actor.loss(agent, batch, generator(0, "t")).value
    lower, upper = agent["mask"].bounds(batch.observation, generator(0, "t"))
    raw = agent["actor"](batch.observation)
    value = agent["critic"](batch.observation, map_(raw, lower, upper))[0].mean()
    extra = 3.0 * outside(raw, lower, upper) if isinstance(map_, Clip) else 0.0
    assert torch.allclose(found, extra - value, atol=1e-6)


def test_a_held_draw_lasts():
    method = replace(small(camel.bernoulli(), share=Bernoulli(hold=3)), annealing=Annealing(epsilon=0.5))
    learner = replace(method, collector=Interaction(environments=2, warm_up=1000)).learner(PENDULUM, seed=1)
    acted = []
    for _ in range(60):
        learner.step()  # warms up: the actor stays the same
        acted.append(learner.policy.act(SEEN, None, generator(0, "a"))[0][:, 0].tolist())
    assert all(acted[i] == acted[i - i % 3] for i in range(60))
    free = learner.policy.exploring.act(SEEN, None, generator(0, "a"))[0][:, 0].tolist()
    for row in range(3):
        assert {action[row] == free[row] for action in acted} == {True, False}


def test_the_adaptive_share_falls_with_success_and_never_rises():
    learner = small(camel.adaptive()).learner(PENDULUM, seed=0)
    mask, annealing = learner.agent["mask"], AdaptiveAnnealing(decrement=0.4, rate=0.5)
    prior = float(mask.prior_return)
    assert prior == pytest.approx(
        PENDULUM.evaluate(PriorPolicy(mask.priors[0], PENDULUM.spaces).act, generator(0, "prior"))["eval/return"]
    )
    followed = []
    for episode in (prior - 100, prior + 300, prior - 800, prior + 3000, prior + 1.0, prior):
        annealing.observe(mask, episode)
        followed.append(float(mask.epsilon))
    assert followed == pytest.approx([1.0, 0.6, 0.6, 0.2, 0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("variant", ["camel", "camel:clip", "camel:bernoulli", "camel:adaptive"])
def test_resume_is_bit_identical(variant):
    method = small(registry.method(variant))
    one = trained(method, steps=6)
    other = method.learner(PENDULUM, seed=0, budget=Budget(env_steps=24))
    other.load_state_dict(one.state_dict())
    for _ in range(4):
        a, b = one.step(), other.step()
    assert a.keys() == b.keys() and all(float(a[k]) == float(b[k]) for k in a)


def test_the_share_goes_with_the_budget():
    learner = trained(small(camel.method()), steps=2)
    assert learner.step()["mask/epsilon"] == pytest.approx(1.0 - (4 / 24) / 0.3, abs=1e-6)
    for _ in range(4):
        last = learner.step()
    assert last["mask/epsilon"] == 0.0


def test_bad_input():
    with pytest.raises(ValueError, match="no rule ships"):
        camel.method().learner(registry.problem("two-gap"), seed=0)
    with pytest.raises(ValueError, match="use Envelope"):
        Interval()(torch.zeros(2, 1, 1))
    with pytest.raises(ValueError, match="half_width"):
        Interval(half_width=0.0)
    with pytest.raises(ValueError, match="share"):
        Annealing(epsilon=2.0)
    with pytest.raises(ValueError, match="hold"):
        Bernoulli(hold=0)
    with pytest.raises(ValueError, match="value_weight"):
        MaskedActor(value_weight=1.0)
