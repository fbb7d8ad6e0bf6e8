"""Where an iteration of PPO on control goes, piece by piece: the shortest of fifteen, with the settings of control_vs_sb3.py."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import torch
import tyro
from control_vs_sb3 import CASES, our_method

REPEATS = 15


def milliseconds(call: Callable[[], Any], count: int = 1) -> float:
    """Of ``count`` calls in a row."""
    best = float("inf")
    for _ in range(REPEATS):
        before = time.perf_counter()
        for _ in range(count):
            call()
        best = min(best, time.perf_counter() - before)
    return round(1e3 * best, 3)


def main(case: str = "ppo-cartpole") -> None:
    """case: ppo-cartpole or ppo-halfcheetah."""
    from policyopt import registry
    from policyopt.learners.compiled import compile_updates
    from policyopt.learners.update import minibatches
    from policyopt.types import Budget

    torch.set_num_threads(1)
    chosen = CASES[case]
    problem = registry.problem(f"gym:{chosen.environment}")
    learner: Any = our_method(chosen).learner(problem, seed=0, budget=Budget(env_steps=10**9))
    learner.step()
    memory, method, clock = learner.memories["collector"], learner.method, learner.clock
    collected = method.collector(learner.policy, problem, clock, memory)
    batch = learner._credited(collected.batches["rollouts"])
    seen, rng = torch.from_numpy(memory.environment.observations), clock.generator("profile")
    actions = learner.policy.play(seen, rng).numpy()
    pieces = {"rollouts": batch}
    one = next(iter(minibatches(pieces, method.minibatches, rng)))["rollouts"]
    objective = method.objective
    prepared = objective.prepare(one)
    loss = objective(learner.policy.evaluate(prepared, objective.want()), prepared).value
    iteration = {
        "whole": milliseconds(learner.step),
        "environments": milliseconds(lambda: memory.environment.step(actions), chosen.steps),
        "acting": milliseconds(lambda: learner.policy.play(seen, rng), chosen.steps),
        "collecting": milliseconds(lambda: method.collector(learner.policy, problem, clock, memory)),
        "credit": milliseconds(lambda: learner._credited(collected.batches["rollouts"])),
        "policy's updates": milliseconds(lambda: learner._improve(pieces)),
        "critic's updates": milliseconds(
            lambda: learner.critic.train(pieces, method.epochs, method.minibatches, clock, learner.limit)
        ),
    }
    update = {
        "whole": milliseconds(lambda: learner._update({"rollouts": one}, "0"), 80) / 80,
        "shares": milliseconds(lambda: objective.prepare(one), 80) / 80,
        "network": milliseconds(lambda: learner.policy(prepared.observations), 80) / 80,
        "network and probabilities": milliseconds(lambda: learner.policy.evaluate(prepared), 80) / 80,
        "objective": milliseconds(lambda: objective(learner.policy.evaluate(prepared), prepared), 80) / 80,
        "backward": milliseconds(lambda: loss.backward(retain_graph=True), 80) / 80,
    }
    update["objective"] -= update["network and probabilities"]
    compile_updates(learner)
    learner.step()
    iteration["whole, compiled"] = milliseconds(learner.step)
    iteration["updates of both, compiled"] = milliseconds(lambda: learner._improve(pieces))
    found = {"iteration": iteration, "update of the policy": {name: round(v, 3) for name, v in update.items()}}
    print(json.dumps({"benchmark": "ppo_profile", "case": case, "milliseconds": found}))


if __name__ == "__main__":
    tyro.cli(main)
