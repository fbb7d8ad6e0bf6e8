"""The on-policy learner: updates do not depend on the micro-batch, columns are checked, stages follow each other."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from policyopt.credit.groups import Credit, GroupMean, GroupNormalized, over_steps
from policyopt.credit.returns import GeneralizedAdvantage, RewardAtEnd
from policyopt.learners.annotators import Reference
from policyopt.learners.columns import check_columns, nested_parts
from policyopt.learners.critic import Critic
from policyopt.learners.on_policy import OnPolicy
from policyopt.learners.stages import Stage, Stages
from policyopt.learners.update import Adam, Cosine, Linear, Schedule, minibatches
from policyopt.methods import grpo, ppo, sft
from policyopt.models.language import LanguagePolicy
from policyopt.models.tiny import character_tokenizer, tiny_model
from policyopt.objectives.divergence import ReferenceK3
from policyopt.objectives.policy_gradient import Behaviour, Current, Objective, PolicyGradient
from policyopt.problems.language.arithmetic import Arithmetic
from policyopt.registry import methods
from policyopt.rollouts.language import Groups
from policyopt.rollouts.written import Demonstrations
from policyopt.types import Budget, Clock, Loss, Outputs, Part, Rollouts, Scores

GROUPS = Groups(prompts=4, samples=3)


@dataclass(frozen=True, kw_only=True)
class Digits(Arithmetic):
    """Arithmetic whose reward a fresh policy earns more or less of: the share of digits in the response."""

    terms: int | tuple[int, int] = (2, 4)

    def components(self, ids: Any, responses: Any, split: str = "train") -> Scores:
        return {"accuracy": torch.tensor([sum(c.isdigit() for c in text) / (1 + len(text)) for text in responses])}


PROBLEM = Digits()


def fresh(seed: int = 0) -> LanguagePolicy:
    tokenizer = character_tokenizer()
    return LanguagePolicy(tiny_model(seed, len(tokenizer), layers=1, width=16, heads=2), tokenizer)


def weights(learner: Any) -> dict[str, Tensor]:
    found = {name: tensor.clone() for name, tensor in learner.policy.state_dict().items()}
    if getattr(learner, "critic", None) is not None:
        body = learner.critic.state_dict()["model"]
        found |= {f"critic/{name}": tensor.clone() for part in body.values() for name, tensor in part.items()}
    return found


KL = replace(grpo.kl(), collector=GROUPS)
ACCUMULATED = {
    "grpo": replace(grpo.method(), collector=GROUPS),
    "token mean": replace(grpo.token_mean(), collector=GROUPS, minibatches=2, epochs=2),
    "reference": KL,
    "ppo": replace(ppo.method(), collector=Groups(prompts=12, samples=1)),
    "sft": replace(sft.method(), collector=Demonstrations(prompts=12)),
}


@pytest.mark.parametrize("case", ACCUMULATED)
def test_the_micro_batch_does_not_change_the_result(case: str) -> None:
    """Adam divides by the gradient's own size, so that gradients of rounding error would differ freely: SGD-like epsilon."""
    method = replace(ACCUMULATED[case], optimizer=Adam(learning_rate=0.05, epsilon=1e-2))
    if method.critic is not None:
        method = replace(method, critic=replace(method.critic, optimizer=method.optimizer))
    results, metrics, pieces = [], [], []
    for limit in (10**9, 20):
        learner = replace(method, micro_batch=limit).learner(PROBLEM, fresh(), seed=0)
        before = weights(learner)
        metrics.append({name: float(value) for name, value in learner.step().items()})
        results.append(weights(learner))
        assert max(float((before[name] - tensor).abs().max()) for name, tensor in results[-1].items()) > 1e-3
        batch = learner.method.collector(learner.policy, PROBLEM, learner.clock).batches["rollouts"]
        pieces.append(len(learner.policy.micro_batches(batch, limit)))
    assert pieces[0] == 1
    assert pieces[1] > 3
    for name, tensor in results[0].items():
        torch.testing.assert_close(
            results[1][name], tensor, atol=2e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-3, abs=1e-5, nan_ok=True)


# -- columns


@pytest.mark.parametrize(
    ("method", "part", "column"),
    [
        (OnPolicy(credit=()), "PolicyGradient", "advantage"),
        (OnPolicy(credit=(GeneralizedAdvantage(),)), "GeneralizedAdvantage", "rewards"),
        (OnPolicy(credit=(RewardAtEnd(), GeneralizedAdvantage())), "GeneralizedAdvantage", "value"),
        (OnPolicy(collector=Demonstrations(), credit=(GroupMean(),)), "GroupMean", "scores"),
        (replace(KL, annotators=()), "ReferenceK3", "ref_logp"),
        (replace(sft.method(), objective=PolicyGradient(denominator=Behaviour())), "Behaviour", "behaviour_logp"),
    ],
)
def test_a_column_that_nobody_gives_is_named_when_the_learner_is_built(
    method: OnPolicy, part: str, column: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{part} reads the column '{column}', which no part before it gives"):
        method.learner(PROBLEM, fresh(), seed=0)


def test_every_language_method_has_its_columns() -> None:
    from policyopt import registry

    checked = 0
    for slug, entry in methods().items():
        for name in (slug, *(f"{slug}:{variant}" for variant in entry.variants)) if entry.kind == "method" else ():
            method = registry.method(name)
            if isinstance(method, OnPolicy):
                check_columns(method.stages())
                checked += 1
    assert checked >= 15


def test_nested_parts_come_before_the_part_they_are_in() -> None:
    objective = PolicyGradient(denominator=Current(), regularizers=(ReferenceK3(coefficient=0.1),))
    names = [type(part).__name__ for part in nested_parts(objective)]
    assert names[-1] == "PolicyGradient"
    assert {"Current", "ReferenceK3"} <= set(names[:-1])


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="epochs and minibatches must be positive, got 0 and 1"):
        OnPolicy(epochs=0)
    with pytest.raises(ValueError, match="micro_batch must be a positive number of tokens, got 0"):
        OnPolicy(micro_batch=0)
    with pytest.raises(ValueError, match="trains a language policy that it is given"):
        grpo.method().learner(PROBLEM, seed=0)
    with pytest.raises(ValueError, match="7 minibatches need at least as many rows, but rollouts has 6"):
        list(minibatches({"rollouts": rows(6)}, 7, torch.Generator()))


# -- minibatches and epochs


def rows(count: int, group: Tensor | None = None) -> Rollouts:
    return Rollouts(
        actions=torch.arange(count)[:, None], mask=torch.ones(count, 1).bool(), group=group, batch_size=[count]
    )


@pytest.mark.parametrize(
    "group", [None, torch.arange(24) // 4, torch.arange(24) % 6 * 100 - 7], ids=["none", "runs", "mixed"]
)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_minibatches_cover_every_row_once_and_keep_groups_together(group: Tensor | None, count: int) -> None:
    batches = {"rollouts": rows(24, group), "demonstrations": rows(10)}
    pieces = list(minibatches(batches, count, torch.Generator().manual_seed(0)))
    assert len(pieces) == count
    for name, batch in batches.items():
        seen = torch.cat([piece[name].actions[:, 0] for piece in pieces])
        assert seen.sort().values.tolist() == list(range(len(batch)))
        sizes = [len(piece[name]) for piece in pieces]
        assert max(sizes) - min(sizes) <= 1
    if group is not None and count > 1:
        order = torch.cat([piece["rollouts"].group for piece in pieces])
        assert int((order[1:] != order[:-1]).sum()) == 5, "six groups, each in one stretch"


def test_minibatches_are_drawn_anew() -> None:
    orders = [
        torch.cat(
            [
                piece["rollouts"].actions
                for piece in minibatches({"rollouts": rows(24)}, 4, torch.Generator().manual_seed(s))
            ]
        )
        for s in (0, 0, 1)
    ]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0][:, 0], torch.arange(24))


@dataclass(frozen=True, kw_only=True)
class Watched(PolicyGradient):
    """The objective, and the largest |log ratio| to the sampling policy in each update."""

    seen: ClassVar[list[float]] = []

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Loss:
        assert outputs.logp is not None
        assert batch.old_logp is not None
        self.seen.append(float(((outputs.logp.detach() - batch.old_logp) * batch.mask).abs().max()))
        return super().__call__(outputs, batch)


def test_a_second_epoch_compares_with_the_policy_that_sampled() -> None:
    Watched.seen.clear()
    method = replace(grpo.method(), collector=GROUPS, objective=Watched(), epochs=3, optimizer=Adam(learning_rate=0.02))
    metrics = method.learner(PROBLEM, fresh(), seed=0).step()
    first, second, third = Watched.seen
    assert first < 1e-4 < 1e-2 < second < third
    assert float(metrics["policy/kl_k3"]) > 0


def test_a_step_is_one_step_of_the_clock_and_reports_what_it_cost() -> None:
    learner = replace(grpo.method(), collector=GROUPS, epochs=2).learner(
        PROBLEM, fresh(), seed=0, budget=Budget(updates=4)
    )
    metrics = learner.step()
    assert learner.clock.step == 1
    assert learner.clock.share == 0.25
    assert learner.clock.spent["tokens"] == float(metrics["cost/tokens"]) == float(metrics["response/length"]) * 12


# -- further named batches


@dataclass(frozen=True, kw_only=True)
class Twice(Groups):
    """The same rollouts under a second name as well."""

    def __call__(self, policy: LanguagePolicy, problem: Any, clock: Clock, memory: Any = None) -> Any:
        collected = super().__call__(policy, problem, clock)
        batch = collected.batches["rollouts"]
        collected.batches["again"] = batch.replace(advantage=over_steps(torch.arange(len(batch)).float(), batch))
        return collected


@dataclass(frozen=True, kw_only=True)
class Given(Credit):
    """The advantages of the batch above, times a factor."""

    needs: ClassVar[tuple[str, ...]] = ("scores",)
    gives: ClassVar[tuple[str, ...]] = ("advantage",)
    factor: float = 1.0

    def __call__(self, batch: Rollouts, memory: object = None) -> Rollouts:
        return batch.replace(advantage=over_steps(self.factor * torch.arange(len(batch)).float(), batch))


def test_objectives_of_named_batches_add_up() -> None:
    """Advantage a on one batch and a on another is advantage 2a on one."""
    optimizer = Adam(learning_rate=0.01, gradient_clip=None, epsilon=1e-2)
    plain = OnPolicy(collector=Groups(prompts=3, samples=2), credit=(Given(factor=2.0),), optimizer=optimizer)
    double = replace(
        plain, collector=Twice(prompts=3, samples=2), credit=(Given(),), objectives={"again": PolicyGradient()}
    )
    one, two = (method.learner(PROBLEM, fresh(), seed=0) for method in (plain, double))
    norms = [float(learner.step()["gradient/norm"]) for learner in (one, two)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(two)[name], tensor, atol=1e-5, rtol=1e-4)


# -- stages

SFT = replace(sft.method(), collector=Demonstrations(prompts=4))
GRPO = replace(grpo.method(), collector=GROUPS)


def staged(repeat: int = 1, last: Budget | None = None) -> Stages:
    stages = (
        Stage(name="imitate", method=SFT, until=Budget(updates=2)),
        Stage(name="improve", method=GRPO, until=last),
    )
    return Stages(stages=stages, repeat=repeat)


def test_stages_follow_each_other_and_share_the_policy() -> None:
    policy = fresh()
    learner = staged().learner(PROBLEM, policy, seed=0, budget=Budget(updates=5))
    rows = [learner.step() for _ in range(5)]
    assert [row["stage"] for row in rows] == [0, 0, 1, 1, 1]
    assert ["reward/mean" in row for row in rows] == [False, False, True, True, True]
    assert learner.policy is policy
    assert list(learner.artifacts) == ["imitate"]
    assert learner.clock.spent["tokens"] == sum(float(row["cost/tokens"]) for row in rows)
    assert learner.clock.spent["updates"] == learner.clock.step == 5
    assert learner.clock.share == 1.0


def test_stages_can_be_repeated() -> None:
    learner = staged(repeat=2, last=Budget(tokens=1)).learner(PROBLEM, fresh(), seed=0, budget=Budget(updates=9))
    assert [learner.step()["stage"] for _ in range(8)] == [0, 0, 1, 2, 2, 3, 3, 3], "the last one goes on"


def test_a_resume_builds_the_stages_and_trains_none_of_them_again() -> None:
    def learner() -> Any:
        return staged().learner(PROBLEM, fresh(), seed=0, budget=Budget(updates=6))

    whole, first, second = learner(), learner(), learner()
    for _ in range(6):
        whole.step()
    for _ in range(4):
        first.step()
    second.load_state_dict(first.state_dict())
    assert second.position == 1
    assert second.clock == first.clock
    assert all(torch.equal(tensor, weights(second)[name]) for name, tensor in weights(first).items())
    assert [second.step()["stage"] for _ in range(2)] == [1, 1]
    assert all(torch.equal(tensor, weights(second)[name]) for name, tensor in weights(whole).items())


def test_the_same_stage_again_starts_from_what_the_former_one_left() -> None:
    """Twice the same method, the optimizer fresh and the policy trained on."""
    stages = Stages(stages=(Stage(name="a", method=SFT, until=Budget(updates=1)), Stage(name="b", method=SFT)))
    learner = stages.learner(PROBLEM, fresh(), seed=0, budget=Budget(updates=2))
    learner.step()
    middle = weights(learner)
    learner.step()
    assert learner.current.clock.step == 1
    alone = SFT.learner(PROBLEM, fresh(), seed=1)
    alone.policy.load_state_dict(middle)
    alone.step()
    assert all(torch.equal(tensor, weights(alone)[name]) for name, tensor in weights(learner).items())


@pytest.mark.parametrize(
    ("stages", "repeat", "message"),
    [
        ((), 1, "at least one stage"),
        ((Stage(name="a", method=SFT),), 0, "at least one stage and one repetition"),
        (
            (Stage(name="a", method=SFT), Stage(name="b", method=SFT)),
            1,
            "every stage but the last needs its own budget",
        ),
        ((Stage(name="a", method=SFT),), 2, "to be repeated, the last stage needs its own budget"),
    ],
)
def test_sequences_that_would_never_end(stages: tuple[Stage, ...], repeat: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stages(stages=stages, repeat=repeat)


# -- annotators, schedules


def test_the_reference_is_the_policy_as_it_was() -> None:
    learner = replace(KL, optimizer=Adam(learning_rate=0.05)).learner(PROBLEM, fresh(), seed=0)
    start = weights(learner)
    learner.step()
    reference = learner.models["annotators.0"].state_dict()
    assert all(torch.equal(start[name], tensor) for name, tensor in reference.items())
    batch = GROUPS(learner.policy, PROBLEM, learner.clock).batches["rollouts"]
    annotated = Reference()(batch, learner.policy, learner.models["annotators.0"], 20)
    original = fresh()
    torch.testing.assert_close(annotated.ref_logp, original.evaluate(batch).logp.detach(), atol=1e-5, rtol=1e-4)
    assert float((annotated.ref_logp - batch.behaviour_logp)[batch.mask].abs().max()) > 1e-2


def clock(step: int, share: float = 0.0) -> Clock:
    return Clock(step=step, share=share)


def test_schedules() -> None:
    assert [Schedule(warmup=3)(clock(step)) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert Schedule()(clock(0)) == 1.0
    assert [Linear(final=0.2)(clock(9, share)) for share in (0.0, 0.5, 1.0, 1.7)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    quarter = 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4))
    given = [Cosine(final=0.2)(clock(9, share)) for share in (0.0, 0.25, 0.5, 1.0, 1.7)]
    assert given == pytest.approx([1.0, quarter, 0.6, 0.2, 0.2])
    assert Linear(warmup=1)(clock(0, 0.5)) == 0.25


def test_the_schedule_sets_the_size_of_the_step() -> None:
    """Adam's first step is the learning rate, whatever the gradient: half of it in the first of two steps of warm-up."""
    for warmup, rate in ((0, 0.01), (1, 0.005)):
        weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = Adam(learning_rate=0.01, schedule=Schedule(warmup=warmup)).build([weight])
        weight.grad = torch.tensor([0.3, -0.1])
        optimizer.step(torch.tensor(0.0), clock(0))
        torch.testing.assert_close(weight.detach(), torch.tensor([1.0 - rate, -2.0 + rate]))


def test_the_gradient_is_clipped_by_its_norm_and_reported_before() -> None:
    for limit, want in ((1.0, [0.6, 0.8]), (None, [3.0, 4.0]), (10.0, [3.0, 4.0])):
        weight = torch.nn.Parameter(torch.zeros(2))
        optimizer = Adam(gradient_clip=limit, betas=(0.0, 0.0)).build([weight])
        weight.grad = torch.tensor([3.0, 4.0])
        assert float(optimizer.step(torch.tensor(0.0), clock(0))) == pytest.approx(5.0)
        torch.testing.assert_close(optimizer.state["exp_avg"][0], torch.tensor(want), atol=1e-5, rtol=1e-5)
        assert weight.grad is None


def test_there_must_be_something_to_train() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        Adam().build([])


def test_parts_have_no_state_of_their_own() -> None:
    """Two learners of one method do not share anything that changes."""
    one, two = (GRPO.learner(PROBLEM, fresh(), seed=0) for _ in range(2))
    one.step()
    one.step()
    two.step()
    two.step()
    assert all(torch.equal(tensor, weights(two)[name]) for name, tensor in weights(one).items())
    assert isinstance(GRPO.collector, Part)
    assert isinstance(GRPO.objective, Objective)
    assert GRPO.credit == (GroupNormalized(),)
    assert Critic().memory() is None
