"""Offline learners of policyopt and of d3rlpy, side by side: gradient steps a second, and the returns that they reach.

Same on both sides: the data set (logged walks of the problem `checker`), batch, networks, rates, discount, Polyak rate,
temperatures and weights, float32, threads. A step is one batch drawn from memory and one update of every network that is
due. Speed: fresh processes in alternating order, networks of --width units. Learning: --updates steps with small networks
on data sets of 5000 transitions of --seeds seeds, evaluated by policyopt on the same 200 starts.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from side_by_side import Measured, alternate, apart, note, step_seconds

OURS, PEER = "policyopt", "d3rlpy"
METHODS = ("bc", "td3-bc", "iql", "cql")
GAMMA, WARM_UP = 0.99, 10


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure. clock: cpu counts this process's processor time, for a machine that has other work as well."""

    methods: tuple[str, ...] = METHODS
    steps: int = 60
    repeats: int = 3
    batch: int = 256
    width: int = 256
    seeds: int = 5
    updates: int = 1000
    small: int = 64
    threads: int = 1
    clock: Literal["wall", "cpu"] = "wall"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One measurement."""

    arm: str
    method: str
    options: Options
    width: int
    rate: float
    polyak: float
    seed: int = 0


def ours(setting: Setting, problem: Any) -> tuple[Any, Any]:
    """(one step, greedy actions for observations) of policyopt."""
    from policyopt import registry
    from policyopt.learners.off_policy import Round
    from policyopt.learners.update import Adam

    method, updates = registry.method(setting.method), []
    for update in method.updates():
        rates = {"optimizer": Adam(learning_rate=rate_of(setting, update.trains), gradient_clip=None)}
        sizes = {"model": replace(update.model, width=setting.width)} if hasattr(update, "model") else {}
        follow = {"polyak": setting.polyak} if hasattr(update, "polyak") else {}
        updates.append(replace(update, **rates, **sizes, **follow))
    sized = replace(method, rounds=(Round(updates=tuple(updates)),), batch=setting.options.batch)
    learner = sized.learner(problem, seed=setting.seed)
    return learner.step, learner.policy.act


def rate_of(setting: Setting, trains: str) -> float:
    """CQL's actor and temperature learn at a third of the rate, as both libraries have it."""
    slow = setting.method == "cql" and trains in ("actor", "temperature")
    return setting.rate / 3.0 if slow else setting.rate


def peer(setting: Setting, problem: Any) -> tuple[Any, Any]:
    """(one step, greedy actions for observations) of d3rlpy."""
    import d3rlpy
    import torch

    d3rlpy.seed(setting.seed)
    encoder = d3rlpy.models.VectorEncoderFactory([setting.width, setting.width])
    critics = {
        "actor_learning_rate": rate_of(setting, "actor"),
        "critic_learning_rate": setting.rate,
        "actor_encoder_factory": encoder,
        "critic_encoder_factory": encoder,
        "tau": setting.polyak,
        "gamma": GAMMA,
    }
    algos = d3rlpy.algos
    seen = problem.transitions().observation
    scaler = d3rlpy.preprocessing.StandardObservationScaler(
        mean=seen.mean(0).numpy(), std=seen.std(0, correction=0).numpy(), eps=1e-3
    )
    configs: dict[str, Any] = {
        "bc": lambda: algos.BCConfig(learning_rate=setting.rate, encoder_factory=encoder),
        "td3-bc": lambda: algos.TD3PlusBCConfig(**critics, observation_scaler=scaler),
        "iql": lambda: algos.IQLConfig(**critics, value_encoder_factory=encoder),
        "cql": lambda: algos.CQLConfig(
            **critics, temp_learning_rate=rate_of(setting, "temperature"), alpha_learning_rate=0.0
        ),
    }
    data = episodes(problem)
    algo = configs[setting.method]().create(device="cpu:0")
    algo.build_with_dataset(data)

    def act(observation: Any, memory: Any, rng: Any, greedy: bool) -> tuple[Any, dict[str, Any], Any]:
        return torch.from_numpy(algo.predict(observation.numpy())), {}, memory

    return lambda: algo.update(data.sample_transition_batch(setting.options.batch)), act


def episodes(problem: Any) -> Any:
    """The same transitions as d3rlpy's data set; a cut episode ends with a step that it never learns from, which holds
    the last next observation."""
    import d3rlpy

    data = problem.transitions()
    seen, action, reward, following = (
        getattr(data, name).numpy() for name in ("observation", "action", "reward", "next_observation")
    )
    walks = 100
    rows: dict[str, list[Any]] = {name: [] for name in ("observations", "actions", "rewards", "terminals", "timeouts")}
    for walk in range(walks):
        index = np.arange(walk, len(seen), walks)
        for here, after in zip(index, [*index[1:], None], strict=True):
            ended = bool(data.terminated[here])
            cut = not ended and (after is None or not np.array_equal(following[here], seen[after]))
            steps = [(seen[here], action[here], reward[here], float(ended), 0.0)]
            steps += [(following[here], 0.0 * action[here], 0.0, 0.0, 1.0)] if cut else []
            for step in steps:
                for column, value in zip(rows.values(), step, strict=True):
                    column.append(value)
    arrays = {name: np.asarray(column, np.float32) for name, column in rows.items()}
    made = d3rlpy.dataset.MDPDataset(**arrays)
    assert made.transition_count == len(seen), (made.transition_count, len(seen))
    return made


def build(setting: Setting) -> tuple[Any, Any, Any]:
    import torch

    from policyopt.problems.control.checker import Checker

    torch.set_num_threads(setting.options.threads)
    if setting.arm == PEER:
        import d3rlpy
        import structlog

        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
        assert d3rlpy.__version__
    problem = Checker(good=0.5, seed=setting.seed, logged=5000)
    step, act = (ours if setting.arm == OURS else peer)(setting, problem)
    return problem, step, act


def measure(setting: Setting) -> Measured:
    """Seconds of each step."""
    _, step, _ = build(setting)
    for _ in range(WARM_UP):
        step()
    clock = time.process_time if setting.options.clock == "cpu" else time.perf_counter
    seconds = []
    for _ in range(setting.options.steps):
        before = clock()
        step()
        seconds.append(clock() - before)
    return Measured(seconds=tuple(seconds), peak=0)


def learn(setting: Setting) -> list[float]:
    """For every seed the mean return of 200 episodes after ``updates`` steps."""
    import torch

    from policyopt.problems.control.environments import episode_returns

    found = []
    for seed in range(setting.options.seeds):
        problem, step, act = build(replace(setting, seed=seed))
        for _ in range(setting.options.updates):
            step()
        returns, _ = episode_returns(problem.make(200, 10_000 + seed), act, torch.Generator())
        found.append(float(returns.mean()))
    return found


def speed(method: str, options: Options) -> dict[str, Any]:
    settings = {
        arm: Setting(arm=arm, method=method, options=options, width=options.width, rate=3e-4, polyak=0.005)
        for arm in (OURS, PEER)
    }
    arms = alternate(measure, settings, options.repeats)
    seconds = {arm: step_seconds(arms[arm]) for arm in arms}
    each = [step_seconds([b]) / step_seconds([a]) for a, b in zip(arms[OURS], arms[PEER], strict=True)]
    return {
        "steps_per_second": {arm: round(1.0 / value, 1) for arm, value in seconds.items()},
        "ratio": round(seconds[PEER] / seconds[OURS], 2),
        "ratio_range": [round(min(each), 2), round(max(each), 2)],
    }


def learning(method: str, options: Options) -> dict[str, Any]:
    """Final returns, and the interval of the difference (ours less theirs) over seeds."""
    from policyopt.reports.statistics import bootstrap_interval

    found: dict[str, list[float]] = {}
    for arm in (OURS, PEER):
        note(f"{method}, {arm}: {options.seeds} seeds of {options.updates} updates")
        found[arm] = apart(
            learn, Setting(arm=arm, method=method, options=options, width=options.small, rate=1e-3, polyak=0.02)
        )
    interval = bootstrap_interval(np.subtract(found[OURS], found[PEER]))
    return {
        "returns": {arm: [round(value, 2) for value in values] for arm, values in found.items()},
        "difference": {name: round(getattr(interval, name), 3) for name in ("estimate", "low", "high")},
    }


def main(options: Options) -> None:
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    console, methods = Console(), dict[str, Any]()
    table = Table("method", "ours, steps/s", "d3rlpy, steps/s", "ratio", "return, ours", "d3rlpy", "difference [95%]")
    for method in options.methods:
        made: dict[str, Any] = speed(method, options) if options.repeats else {}
        if options.seeds:
            made |= learning(method, options)
        methods[method] = made
        rates, returns = made.get("steps_per_second", {}), made.get("returns", {})
        difference = made.get("difference")
        table.add_row(
            method,
            *(f"{rates[arm]:g}" if rates else "-" for arm in (OURS, PEER)),
            f"{made['ratio']:g}" if rates else "-",
            *(f"{np.mean(returns[arm]):.2f}" if returns else "-" for arm in (OURS, PEER)),
            "{estimate:g} [{low:g}, {high:g}]".format(**difference) if difference else "-",
        )
    console.print(table)
    ratios = [made["ratio"] for made in methods.values() if "ratio" in made]
    worst = {"ratio": min(ratios)} if ratios else {}
    print(json.dumps({"benchmark": "offline_vs_d3rlpy", **worst, "methods": methods, "options": asdict(options)}))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
