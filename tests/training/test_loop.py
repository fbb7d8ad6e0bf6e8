"""The loop: budgets, cadence, log, interruption, and what is left behind when something goes wrong."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from policyopt import types
from policyopt.credit.groups import Credit
from policyopt.learners.update import NonFinite
from policyopt.methods import grpo, ppo
from policyopt.models.language import LanguagePolicy
from policyopt.problems.language.arithmetic import Arithmetic
from policyopt.problems.language.base import LanguageProblem
from policyopt.rollouts.language import Groups
from policyopt.training.checkpoint import Checkpoints, flatten, load
from policyopt.training.log import TensorBoard, read_rows
from policyopt.training.loop import Cadence, run
from policyopt.types import Budget, Clock, Prompt, Rollouts, Scores


class Walk:
    """A learner and its method in one: a number that grows by a random amount each step, at a cost of 30 tokens."""

    def __init__(self, before: Callable[[int], None] = lambda step: None) -> None:
        self.position, self.before, self.clock, self.budget = torch.zeros(1), before, Clock(), None
        self.policy = None

    def learner(self, problem: Any, policy: Any, *, seed: int, budget: Budget | None = None) -> Walk:
        self.clock, self.budget = Clock(seed=seed), budget  # type: ignore[assignment]
        return self

    def step(self) -> dict[str, Any]:
        self.before(self.clock.step + 1)
        self.position = self.position + torch.rand(1, generator=self.clock.generator("walk"))
        metrics = {"loss/policy": self.position.clone(), "cost/tokens": 30, "cost/env_steps": 7.0}
        self.clock.advance(metrics, self.budget)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "clock": self.clock.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]
        self.clock.load_state_dict(state["clock"])


class Judge:
    """A problem without a policy: its evaluation is drawn from the generator that it is given."""

    name = "judge"

    def evaluate(self, act: Any, rng: torch.Generator) -> dict[str, float]:
        return {"eval/return": float(torch.rand(1, generator=rng))}


def walk(out: Path | None = None, resume: bool = False, method: Walk | None = None, **options: Any) -> Any:
    given = {"budget": Budget(updates=8), "cadence": Cadence(evaluations=4, checkpoints=2), "seed": 1, **options}
    return run(method or Walk(), Judge(), out=out, resume=resume, **given)


def steps(rows: list[dict[str, Any]], metric: str) -> list[int]:
    return [int(row["step"]) for row in rows if metric in row]


@pytest.mark.parametrize(
    ("budget", "count"),
    [
        (Budget(updates=5), 5),
        (Budget(tokens=120), 4),
        (Budget(tokens=121), 5),
        (Budget(env_steps=15), 3),
        (Budget(updates=5, tokens=61), 3),
        (Budget.parse("100-updates,20-env-steps"), 3),
    ],
)
def test_a_budget_ends_the_run_at_the_first_step_that_reaches_it(budget: Budget, count: int) -> None:
    result = walk(budget=budget)
    assert steps(result.rows, "loss/policy") == list(range(1, count + 1))
    assert result.rows[-1]["spent/tokens"] == 30 * count
    assert result.rows[-1]["spent/env_steps"] == 7 * count
    assert result.rows[-1]["spent/updates"] == count


def test_a_budget_of_seconds_counts_time_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(types, "monotonic", lambda: now)

    def sleep(step: int) -> None:
        nonlocal now
        now += 2.0

    result = walk(method=Walk(sleep), budget=Budget(seconds=7.0))
    assert steps(result.rows, "loss/policy") == [1, 2, 3, 4]
    assert result.rows[-1]["spent/seconds"] == 8.0


def test_evaluations_fall_on_equal_shares_of_the_budget_and_on_both_ends() -> None:
    assert steps(walk().rows, "eval/return") == [0, 2, 4, 6, 8]
    assert steps(walk(budget=Budget(tokens=100)).rows, "eval/return") == [0, 1, 2, 3, 4]
    assert steps(walk(cadence=Cadence(evaluations=3)).rows, "eval/return") == [0, 3, 6, 8]
    assert steps(walk(cadence=Cadence(evaluations=100)).rows, "eval/return") == list(range(9))
    assert steps(walk(cadence=Cadence(evaluations=0)).rows, "eval/return") == [0]


def test_evaluations_draw_from_generators_of_their_own() -> None:
    often, seldom = walk(cadence=Cadence(evaluations=8)), walk(cadence=Cadence(evaluations=2))
    assert often.curve("loss/policy") == seldom.curve("loss/policy")
    value = dict(zip(*often.curve("eval/return"), strict=True))
    assert dict(zip(*seldom.curve("eval/return"), strict=True)) == {step: value[step] for step in (0, 4, 8)}
    assert len(set(value.values())) == 9
    assert walk(seed=2).rows[0]["eval/return"] != value[0]


def test_evaluation_leaves_the_training_of_a_language_model_as_it_is(policy: LanguagePolicy) -> None:
    method = replace(grpo.method(), collector=Groups(prompts=2, samples=4))
    weights = []
    for evaluations in (1, 3):
        own = policy.frozen_copy()
        own.model.requires_grad_(True)
        run(method, Broken(bad=2.0), own, budget=Budget(updates=3), seed=0, cadence=Cadence(evaluations=evaluations))
        weights.append(own.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], tensor) for name, tensor in policy.state_dict().items())


def test_a_run_without_a_folder_keeps_everything_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = walk()
    assert result.folder is None
    assert not list(tmp_path.iterdir())
    assert result.curve("loss/policy")[0] == list(range(1, 9))
    x, y = result.curve("loss/policy", "spent/tokens")
    assert x == [30.0 * step for step in range(1, 9)]
    assert y == sorted(y)
    assert result.last("loss/policy") == y[-1] == float(result.learner.position)


def test_the_folder_holds_the_log_the_last_two_checkpoints_and_the_best(tmp_path: Path) -> None:
    result = walk(tmp_path, seed=9)
    assert read_rows(tmp_path / "metrics.jsonl") == result.rows
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    best_step = max((y, x) for x, y in zip(*result.curve("eval/return"), strict=True) if x > 0)
    assert names == ["best", "step-00000004", "step-00000008"]
    best = load(tmp_path / "checkpoints" / "best")
    assert best["learner"]["clock"]["step"] == best_step[1]
    assert best["best"] == best_step[0]
    assert load(tmp_path / "checkpoints" / "step-00000008")["learner"]["position"] == result.learner.position


def test_a_resumed_run_has_the_rows_of_before(tmp_path: Path) -> None:
    whole = walk(tmp_path / "whole")

    def fail(step: int) -> None:
        if step == 6:
            raise RuntimeError("the machine is on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        walk(tmp_path / "broken", method=Walk(fail))
    assert len(read_rows(tmp_path / "broken" / "metrics.jsonl")) == 6
    resumed = walk(tmp_path / "broken", resume=True)
    assert resumed.curve("loss/policy") == whole.curve("loss/policy")
    assert resumed.curve("eval/return") == whole.curve("eval/return")
    assert len(resumed.rows) == len(whole.rows)


@pytest.mark.parametrize("limit", [8, 12])
def test_a_finished_run_goes_on_with_a_larger_budget(limit: int, tmp_path: Path) -> None:
    walk(tmp_path, budget=Budget(updates=4))
    result = walk(tmp_path, budget=Budget(updates=limit), resume=True)
    assert steps(result.rows, "loss/policy") == list(range(1, limit + 1))
    assert result.curve("loss/policy")[1][:8] == walk().curve("loss/policy")[1][:limit]


def test_ctrl_c_finishes_the_step_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    former = signal.getsignal(signal.SIGINT)

    def interrupt(step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="stopped after step 3; policyopt train --resume"):
        walk(tmp_path, method=Walk(interrupt))
    assert signal.getsignal(signal.SIGINT) is former
    state = Checkpoints(tmp_path / "checkpoints").latest()
    assert state is not None
    assert state["learner"]["clock"]["step"] == 3
    assert steps(read_rows(tmp_path / "metrics.jsonl"), "loss/policy") == [1, 2, 3]
    assert walk(tmp_path, resume=True).curve("loss/policy") == walk().curve("loss/policy")


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    def insist(step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        walk(tmp_path, method=Walk(insist))
    assert steps(read_rows(tmp_path / "metrics.jsonl"), "loss/policy") == [1, 2]


@dataclass(frozen=True, kw_only=True)
class Exploding(Credit):
    """Advantages that are infinite from the second step on."""

    needs: ClassVar[tuple[str, ...]] = ("scores",)
    gives: ClassVar[tuple[str, ...]] = ("advantage",)

    def memory(self) -> Any:
        return Counter()

    def __call__(self, batch: Rollouts, memory: Any = None) -> Rollouts:
        memory.count += 1
        advantage = batch.mask.float() * (1.0 if memory.count < 2 else float("inf"))
        return batch.replace(advantage=advantage)


class Counter:
    count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def test_a_loss_that_is_not_finite_touches_no_weight_and_leaves_the_state(
    policy: LanguagePolicy, tmp_path: Path
) -> None:
    method = replace(grpo.method(), collector=Groups(prompts=2, samples=2), credit=(Exploding(),))
    problem = Arithmetic(terms=2, evaluation_size=4)
    with pytest.raises(
        NonFinite, match=r"step 1: the loss is (inf|nan|-inf).*weights are unchanged.*Look at the rewards"
    ):
        run(method, problem, policy, budget=Budget(updates=4), seed=0, out=tmp_path, cadence=Cadence(checkpoints=4))
    good, failed = (load(tmp_path / "checkpoints" / name)["learner"] for name in ("step-00000001", "failed"))
    (_, before), (_, after) = flatten(good["policy"]), flatten(failed["policy"])
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert all(torch.equal(before[f"/{name}"], tensor) for name, tensor in policy.state_dict().items())
    assert (good["memories"]["credit.0"]["count"], failed["memories"]["credit.0"]["count"]) == (1, 2)
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [0, 1]
    resumed = Checkpoints(tmp_path / "checkpoints").latest()
    assert resumed is not None
    assert resumed["learner"]["clock"]["step"] == 1, "a resume goes on from the last step boundary"


@dataclass(frozen=True, kw_only=True)
class Broken(LanguageProblem):
    """A problem whose reward is what it is told for the third response, 1 for the others."""

    name: str = "broken"
    max_new_tokens: int = 3
    bad: float = float("nan")

    def size(self, split: str) -> int:
        return 4

    def prompts(self, ids: Any, split: str = "train") -> list[Prompt]:
        return [f"{i}=" for i in ids]

    def components(self, ids: Any, responses: Any, split: str = "train") -> Scores:
        accuracy = torch.ones(len(ids))
        if split == "train":
            accuracy[2] = self.bad
        return {"accuracy": accuracy}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("method", [grpo.method(), ppo.method()], ids=["grpo", "ppo"])
def test_a_reward_that_is_not_finite_is_named_before_any_update(
    method: Any, bad: float, policy: LanguagePolicy
) -> None:
    method = replace(method, collector=Groups(prompts=2, samples=2))
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    learner = method.learner(Broken(bad=bad), policy, seed=0)
    with pytest.raises(ValueError, match=rf"broken: the score 'accuracy' of a response to prompt \d is {bad}"):
        learner.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.state_dict().items())


def test_scores_of_the_wrong_shape_are_refused(policy: LanguagePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broken, "score", lambda self, ids, texts, split="train": {"reward": torch.ones(len(ids), 1)})
    learner = replace(grpo.method(), collector=Groups(prompts=2, samples=2)).learner(Broken(), policy, seed=0)
    with pytest.raises(ValueError, match=r"the score 'reward' has shape \(4, 1\), not \(4,\)"):
        learner.step()


def test_tensorboard_gets_the_same_rows(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = walk(tmp_path / "run", trackers=[TensorBoard(tmp_path / "events")])
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    for metric in ("eval/return", "loss/policy"):
        x, y = result.curve(metric)
        assert [event.step for event in events.Scalars(metric)] == x
        assert [event.value for event in events.Scalars(metric)] == pytest.approx(y)


def test_a_few_responses_are_kept_at_every_evaluation(policy: LanguagePolicy, tmp_path: Path) -> None:
    method = replace(grpo.method(), collector=Groups(prompts=2, samples=2))
    problem = Arithmetic(terms=2, evaluation_size=6, max_new_tokens=6)
    result = run(
        method, problem, policy, budget=Budget(updates=2), seed=0, out=tmp_path, cadence=Cadence(evaluations=2)
    )
    assert [sample["step"] for sample in result.samples] == [0] * 4 + [1] * 4 + [2] * 4
    assert [sample["prompt"] for sample in result.samples[:4]] == problem.prompts(range(4), "test")
    assert [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()] == result.samples
