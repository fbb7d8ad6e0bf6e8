"""Control in policyopt and in Stable-Baselines3, side by side: environment steps a second, training included, and memory.

Same on both sides: environments, networks, batch sizes, epochs, optimizers and rates, warm-up, float32, threads. A fresh
process for every measurement, arms in alternating order. PPO runs twice in policyopt: as it is, and compiled.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from side_by_side import Measured, Meter, alternate, peak, step_seconds

OURS, COMPILED, PEER = "policyopt", "policyopt, compiled", "stable-baselines3"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained where, and with which settings; ``block`` environment steps are one timed piece."""

    method: Literal["ppo", "sac", "td3"]
    environment: str
    normalize: bool = False
    hidden: tuple[int, ...] = (64, 64)
    environments: int = 8
    steps: int = 256
    batch: int = 256
    epochs: int = 10
    rate: float = 3e-4
    gamma: float = 0.99
    warm_up: int = 100
    block: int = 2048


CASES = {
    "ppo-cartpole": Case(method="ppo", environment="CartPole-v1"),
    "ppo-halfcheetah": Case(method="ppo", environment="HalfCheetah-v5", normalize=True),
    "sac-halfcheetah": Case(method="sac", environment="HalfCheetah-v5", hidden=(256, 256), environments=1, block=50),
    "td3-halfcheetah": Case(method="td3", environment="HalfCheetah-v5", hidden=(256, 256), environments=1, block=50),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure. blocks: timed pieces of each run (one more is not counted). clock: cpu counts the processor time of
    the measured process, for a machine that has other work as well."""

    cases: tuple[str, ...] = tuple(CASES)
    blocks: int = 6
    repeats: int = 3
    threads: int = 1
    clock: Literal["wall", "cpu"] = "wall"


@dataclass(frozen=True, kw_only=True)
class Setting:
    arm: str
    case: Case
    options: Options


def our_method(case: Case) -> Any:
    """policyopt's method with the settings of ``case``."""
    from policyopt.credit.scaling import RewardScaling
    from policyopt.learners.off_policy import Round
    from policyopt.learners.update import Adam
    from policyopt.methods import ppo, sac, td3
    from policyopt.models.control import MLP
    from policyopt.rollouts.replay import Interaction

    if case.method == "ppo":
        method = ppo.control()
        adam = Adam(learning_rate=case.rate, gradient_clip=0.5, epsilon=1e-5)
        assert method.critic is not None
        return replace(
            method,
            policy=MLP(hidden=case.hidden, standardize=case.normalize),
            collector=replace(method.collector, environments=case.environments, steps=case.steps, gamma=case.gamma),
            critic=replace(method.critic, optimizer=adam, clip=None),
            credit=tuple(part for part in method.credit if case.normalize or not isinstance(part, RewardScaling)),
            optimizer=adam,
            epochs=case.epochs,
            minibatches=case.environments * case.steps // case.batch,
        )
    method, width = {"sac": sac, "td3": td3}[case.method].method(), case.hidden[0]
    updates = []
    for update in method.updates():
        sized = {"model": replace(update.model, width=width)} if hasattr(update, "model") else {}
        discounted = {"gamma": case.gamma} if hasattr(update, "gamma") else {}
        updates.append(
            replace(update, optimizer=replace(update.optimizer, learning_rate=case.rate), **sized, **discounted)
        )
    collector = Interaction(environments=case.environments, warm_up=case.warm_up)
    return replace(method, rounds=(Round(updates=tuple(updates)),), collector=collector, batch=case.batch)


def peer_model(case: Case, seed: int) -> Any:
    """Stable-Baselines3's model with the settings of ``case``; actions in [−1, 1] are scaled to the environment's bounds."""
    import gymnasium
    import numpy as np
    import stable_baselines3 as sb3
    import torch
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.vec_env import VecNormalize

    def single() -> Any:
        made = gymnasium.make(case.environment)
        box = isinstance(made.action_space, gymnasium.spaces.Box)
        return gymnasium.wrappers.RescaleAction(made, -1.0, 1.0) if box else made

    environment: Any = make_vec_env(single, case.environments, seed=seed)
    if case.normalize:
        environment = VecNormalize(environment, gamma=case.gamma, clip_reward=1e9)
    common = {"device": "cpu", "seed": seed, "gamma": case.gamma, "learning_rate": case.rate, "batch_size": case.batch}
    if case.method == "ppo":
        network = {"net_arch": list(case.hidden), "activation_fn": torch.nn.Tanh}
        return sb3.PPO(
            "MlpPolicy", environment, n_steps=case.steps, n_epochs=case.epochs, policy_kwargs=network, **common
        )
    common |= {"learning_starts": case.warm_up, "policy_kwargs": {"net_arch": list(case.hidden)}}
    if case.method == "sac":
        return sb3.SAC("MlpPolicy", environment, **common)
    size = environment.action_space.shape
    noise = NormalActionNoise(np.zeros(size), np.full(size, 0.1))
    return sb3.TD3("MlpPolicy", environment, action_noise=noise, train_freq=1, gradient_steps=1, **common)


def measure(setting: Setting) -> Measured:
    """Seconds of blocks of steps, after the warm-up and one block that doesn't count."""
    import torch

    torch.set_num_threads(setting.options.threads)
    case, options = setting.case, setting.options
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    if setting.arm == PEER:
        return peer(case, options, clock)
    return ours(case, options, clock, compiled=setting.arm == COMPILED)


def ours(case: Case, options: Options, clock: Any, compiled: bool) -> Measured:
    from policyopt import registry
    from policyopt.learners.compiled import compile_updates
    from policyopt.types import Budget

    problem = registry.problem(f"gym:{case.environment}")
    learner = our_method(case).learner(problem, seed=0, budget=Budget(env_steps=10**9))
    if compiled:
        compile_updates(learner)
    wanted = 0 if case.method == "ppo" else case.warm_up
    meter = Meter("cpu", clock)
    for _ in range(options.blocks + 2):
        while learner.clock.spent.get("env_steps", 0) < wanted:
            learner.step()
        meter.stamp()
        wanted += case.block
    return meter.measured(options.blocks)


def peer(case: Case, options: Options, clock: Any) -> Measured:
    from stable_baselines3.common.callbacks import BaseCallback

    model = peer_model(case, seed=0)
    wanted = [0 if case.method == "ppo" else case.warm_up]
    meter = Meter("cpu", clock)

    class Stamp(BaseCallback):
        """Where training on the former block is over."""

        def _on_rollout_start(self) -> None:
            if self.num_timesteps >= wanted[0]:
                meter.stamp()
                wanted[0] += case.block

        def _on_step(self) -> bool:
            return True

    model.learn(wanted[0] + (options.blocks + 2) * case.block, callback=Stamp())
    return meter.measured(options.blocks)


def beside(arm: Any, other: Any, block: int) -> dict[str, Any]:
    """What was measured of an arm, and its ratios to the other."""
    each = [step_seconds([b]) / step_seconds([a]) for a, b in zip(arm, other, strict=True)]
    return {
        "steps_per_second": round(block / step_seconds(arm)),
        "ratio": round(step_seconds(other) / step_seconds(arm), 2),
        "ratio_range": [round(min(each), 2), round(max(each), 2)],
        "peak_mib": round(peak(arm) / 2**20),
        "memory_ratio": round(peak(arm) / peak(other), 2),
    }


def main(options: Options) -> None:
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    table = Table("case", "library", "steps/s", "ratio", "range", "peak, MiB", "ratio")
    found: dict[str, Any] = {}
    for name in options.cases:
        case = CASES[name]
        kinds = (OURS, COMPILED, PEER) if case.method == "ppo" else (OURS, PEER)
        settings = {arm: Setting(arm=arm, case=case, options=options) for arm in kinds}
        arms = alternate(measure, settings, options.repeats)
        found[name] = {arm: beside(arms[arm], arms[PEER], case.block) for arm in kinds}
        for arm, row in found[name].items():
            range_ = "{:g} to {:g}".format(*row["ratio_range"])
            table.add_row(
                name,
                arm,
                *(f"{row[key]:g}" for key in ("steps_per_second", "ratio")),
                range_,
                *(f"{row[key]:g}" for key in ("peak_mib", "memory_ratio")),
            )
    Console().print(table)
    worst = {
        "ratio": min(row[OURS]["ratio"] for row in found.values()),
        "memory_ratio": max(row[OURS]["memory_ratio"] for row in found.values()),
    }
    print(json.dumps({"benchmark": "control_vs_sb3", **worst, "cases": found, "options": asdict(options)}))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
