"""What policyopt's PPO, SAC and TD3 learn, beside Stable-Baselines3's: returns after equal environment steps.

Same on both sides: environments, networks, batches, epochs, rates, warm-up, steps, threads. Each trained policy plays the
same start states greedily, through policyopt's evaluation. The interval is that of the mean difference over seeds.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from control_vs_sb3 import OURS, PEER, Case, our_method, peer_model
from rich.console import Console
from rich.table import Table
from side_by_side import apart, note

PENDULUM = Case(method="sac", environment="Pendulum-v1", environments=1, batch=128, rate=1e-3, warm_up=500)
TASKS: dict[str, tuple[Case, int]] = {  # with the environment steps of a run
    "ppo CartPole-v1": (Case(method="ppo", environment="CartPole-v1", steps=128, rate=1e-3), 20_480),
    "ppo Acrobot-v1": (Case(method="ppo", environment="Acrobot-v1", steps=128, rate=1e-3), 20_480),
    "ppo Pendulum-v1": (
        Case(method="ppo", environment="Pendulum-v1", normalize=True, steps=128, rate=1e-3, gamma=0.9),
        40_960,
    ),
    "ppo HalfCheetah-v5": (Case(method="ppo", environment="HalfCheetah-v5", normalize=True), 20_480),
    "sac Pendulum-v1": (PENDULUM, 3_000),
    "td3 Pendulum-v1": (replace(PENDULUM, method="td3"), 3_000),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to train. share: of the environment steps, to try the script; episodes: of each evaluation."""

    tasks: tuple[str, ...] = tuple(TASKS)
    seeds: int = 5
    episodes: int = 20
    share: float = 1.0
    threads: int = 1
    out: Path = Path("results")


@dataclass(frozen=True, kw_only=True)
class Setting:
    arm: str
    task: str
    options: Options


def learn(setting: Setting) -> list[float]:
    """The mean return of each seed's trained policy."""
    import torch

    torch.set_num_threads(setting.options.threads)
    (case, steps), arm = TASKS[setting.task], {OURS: ours, PEER: peer}[setting.arm]
    steps = int(steps * setting.options.share)
    return [
        evaluated(case, arm(case, steps, seed), setting.options.episodes, seed) for seed in range(setting.options.seeds)
    ]


def ours(case: Case, steps: int, seed: int) -> Any:
    from policyopt import registry
    from policyopt.types import Budget

    problem = registry.problem(f"gym:{case.environment}")
    learner = our_method(case).learner(problem, seed=seed, budget=Budget(env_steps=steps))
    while learner.clock.share < 1.0:
        learner.step()
    return learner.policy.act


def peer(case: Case, steps: int, seed: int) -> Any:
    import torch

    model = peer_model(case, seed)
    model.learn(steps)
    normalization = model.get_vec_normalize_env()

    def act(observation: Any, memory: Any, rng: Any, greedy: bool) -> tuple[Any, dict[str, Any], Any]:
        seen = observation.numpy()
        if normalization is not None:
            seen = normalization.normalize_obs(seen)
        return torch.from_numpy(model.predict(seen, deterministic=True)[0]), {}, memory

    return act


def evaluated(case: Case, act: Any, episodes: int, seed: int) -> float:
    import torch

    from policyopt import registry
    from policyopt.problems.control.environments import episode_returns

    environments = registry.problem(f"gym:{case.environment}").make(episodes, 10_000 + seed)
    return float(episode_returns(environments, act, torch.Generator())[0].mean())


def main(options: Options) -> None:
    from policyopt.reports.figures import arm_points, save_svg
    from policyopt.reports.statistics import bootstrap_interval

    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    table = Table("task", "steps", "policyopt", "SB3", "difference [95%]")
    found: dict[str, Any] = {}
    for task in options.tasks:
        returns: dict[str, list[float]] = {}
        for arm in (OURS, PEER):
            note(f"{task}, {arm}: {options.seeds} seeds")
            returns[arm] = apart(learn, Setting(arm=arm, task=task, options=options))
        interval = bootstrap_interval(np.subtract(returns[OURS], returns[PEER]))
        found[task] = {
            "steps": int(TASKS[task][1] * options.share),
            "returns": {arm: [round(value, 1) for value in values] for arm, values in returns.items()},
            "difference": {name: round(getattr(interval, name), 1) for name in ("estimate", "low", "high")},
        }
        table.add_row(
            task,
            str(found[task]["steps"]),
            *(f"{np.mean(returns[arm]):.0f} ± {np.std(returns[arm]):.0f}" for arm in (OURS, PEER)),
            "{estimate:g} [{low:g}, {high:g}]".format(**found[task]["difference"]),
        )
    Console().print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    save_svg(arm_points({task: row["returns"] for task, row in found.items()}), options.out / "control-learning.svg")
    record = {"benchmark": "control_learning", "tasks": found, "options": {**asdict(options), "out": str(options.out)}}
    (options.out / "control-learning.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
