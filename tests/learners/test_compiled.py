"""Updates as compiled code do what single operations do."""

import shutil
import warnings
from dataclasses import dataclass, replace

import pytest
import torch

from policyopt import api, registry
from policyopt.learners.compiled import adamw, compile_updates, rates
from policyopt.learners.update import Adam, NonFinite
from policyopt.methods import grpo, mdpo, pdppo, pmoe, ppo, sac, trpo
from policyopt.models.control import MLP
from policyopt.objectives.policy_gradient import PolicyGradient
from policyopt.types import Budget, Clock

compiler = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler")


def learner(compiled=False, environment="gym:Pendulum-v1", **changes):
    method = ppo.control()
    collector = replace(method.collector, environments=4, steps=16)
    small = {"policy": MLP(hidden=(8, 8)), "collector": collector, "epochs": 2, "minibatches": 2, **changes}
    made = replace(method, **small).learner(registry.problem(environment), seed=0, budget=Budget(env_steps=1000))
    if compiled:
        compile_updates(made)
    return made


def weights(made):
    return [p.detach().clone() for p in (*made.policy.parameters(), *made.critic.model.parameters())]


@pytest.mark.parametrize("clip", [None, 0.5])
def test_adamw_is_the_optimizers_kernel(clip):
    settings = Adam(learning_rate=0.01, gradient_clip=clip, weight_decay=0.1)
    one, other = ([torch.ones(3, 2), torch.ones(4), torch.ones(2)] for _ in range(2))
    kernel, plain, clock = settings.build(one), settings.build(other), Clock()
    for step in range(5):
        gradients = [torch.full_like(p, 0.3 * (step + 1) * (i + 1)) for i, p in enumerate(one)]
        given = gradients[:2] if step == 2 else gradients  # the third has none once
        for parameter, gradient in zip(one, given, strict=False):
            parameter.grad = gradient.clone()
        norm = kernel.attempt(torch.tensor(1.0), clock)
        full = [*given, None][:3]
        seen = adamw(plain, full, torch.tensor(1.0), rates(plain, clock))
        torch.testing.assert_close(seen[1], norm)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(kernel.counts, plain.counts)
    before = [p.clone() for p in (*other, *plain.state["exp_avg"], plain.counts)]
    adamw(plain, [torch.full_like(p, torch.nan) for p in other], torch.tensor(1.0), rates(plain, clock))
    assert all(map(torch.equal, before, (*other, *plain.state["exp_avg"], plain.counts)))


@compiler
def test_compiled_updates_are_the_plain_ones_and_repeat_bit_by_bit():
    plain, one, other = learner(), learner(compiled=True), learner(compiled=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # nothing falls back
        rows = [[each.step() for _ in range(2)] for each in (plain, one, other)]
    for a, b in zip(weights(plain), weights(one), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert all(map(torch.equal, weights(one), weights(other)))
    assert rows[0][1].keys() == rows[1][1].keys()
    for name in ("loss/policy", "loss/value", "gradient/norm", "policy/kl_k3"):
        torch.testing.assert_close(rows[0][1][name], rows[1][1][name], atol=1e-4, rtol=1e-3)


@compiler
def test_what_is_not_finite_is_still_found():
    made = learner(compiled=True)
    made.step()
    before = [p.detach().clone() for p in made.policy.parameters()]
    bad = made.method.collector(made.policy, made.problem, made.clock, made.memories["collector"]).batches["rollouts"]
    bad = made._credited(bad)
    bad.advantage[:] = torch.nan
    with pytest.raises(NonFinite, match="unchanged"):
        made._update({"rollouts": bad}, "0")
    assert all(map(torch.equal, before, made.policy.parameters()))


@compiler
def test_pieces_of_a_minibatch_go_the_plain_way():
    plain, made = learner(micro_batch=16), learner(compiled=True, micro_batch=16)
    plain.step(), made.step()
    assert all(map(torch.equal, weights(plain), weights(made)))


@compiler
@pytest.mark.parametrize("method", [pdppo.method, pdppo.one_critic])
def test_critics_of_another_kind(method):
    method, lots = method(), registry.problem("lot-sizing:items=3,machines=2,horizon=10")
    small = {"collector": replace(method.collector, environments=2, steps=20), "epochs": 2, "minibatches": 2}
    plain, made = (
        replace(method, policy=replace(method.policy, hidden=(8,)), **small).learner(lots, seed=0) for _ in range(2)
    )
    compile_updates(made)
    rows = plain.step(), made.step()
    torch.testing.assert_close(rows[0]["loss/value"], rows[1]["loss/value"], rtol=1e-4, atol=1e-5)
    for a, b in zip(weights(plain), weights(made), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@compiler
def test_a_critic_with_passes_of_its_own_is_left_alone():
    critic = replace(ppo.control().critic, epochs=1)
    plain, made = learner(critic=critic), learner(compiled=True, critic=critic)
    rows = plain.step(), made.step()
    assert rows[0].keys() == rows[1].keys()
    for a, b in zip(plain.critic.model.parameters(), made.critic.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(weights(plain), weights(made), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@dataclass(frozen=True, kw_only=True)
class Asking(PolicyGradient):
    """Looks at a number in the middle, which no compiled code can."""

    def __call__(self, outputs, batch):
        loss = super().__call__(outputs, batch)
        assert len(str(float(loss.value.detach()))) > 0
        return loss


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so():
    objective = Asking(**vars(ppo.control().objective))
    plain, made = learner(objective=objective), learner(compiled=True, objective=objective)
    plain.step()
    with pytest.warns(UserWarning, match="the updates are not compiled"):
        made.step()
    assert all(map(torch.equal, weights(plain), weights(made)))


def test_without_a_compiler(monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("no C++ compiler was found")

    monkeypatch.setattr(torch, "compile", missing)
    plain = learner()
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler was found"):
        made = learner(compiled=True)
    plain.step(), made.step()
    assert all(map(torch.equal, weights(plain), weights(made)))


@pytest.mark.parametrize(
    ("method", "its"),
    [(pmoe.ppo, "Experts"), (trpo.method, "TrustRegion"), (mdpo.method, "Mirror"), (sac.method, "OffPolicy")],
)
def test_updates_of_another_kind_are_left_alone(method, its):
    made = method().learner(registry.problem("gym:Pendulum-v1"), seed=0)
    with pytest.warns(UserWarning, match=f"of {its}Learner are its own"):
        compile_updates(made)
    assert not {"_update", "train"} & {*vars(made), *vars(getattr(made, "critic", None) or made)}


def test_language_models_are_left_alone(policy):
    with pytest.warns(UserWarning, match="language model have a new shape"):
        compile_updates(grpo.method().learner(registry.problem("arithmetic"), policy, seed=0))


@compiler
def test_a_loaded_state_goes_on_identically():
    whole, first, second = (learner(compiled=True, environment="gym:CartPole-v1") for _ in range(3))
    whole.step(), first.step()
    second.load_state_dict(first.state_dict())
    whole.step(), second.step()
    assert all(map(torch.equal, weights(whole), weights(second)))


def test_it_is_a_setting_of_a_run(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("policyopt.training.loop.compile_updates", asked.append)
    small = {"collector.environments": "2", "collector.steps": "8", "minibatches": "1"}
    chosen = {"problem": "gym:CartPole-v1", "budget": "1-updates", "overrides": small, "progress": False}
    run = api.train("ppo", out=tmp_path / "run", compile=True, **chosen)
    assert asked == [run.learner]
    assert api.read_config(tmp_path / "run").compile
    api.train("ppo", out=tmp_path / "other", **chosen)
    assert len(asked) == 1
