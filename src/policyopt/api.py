"""Training, comparing and evaluating from Python and from the command line: names in, run folders out."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import yaml

from policyopt import __version__, registry
from policyopt.learners.fitted_q import Estimate, FittedQ
from policyopt.learners.stages import Stage, Stages
from policyopt.methods import offline_dataset_metrics as metrics
from policyopt.methods.trajectory_weighting import sampled
from policyopt.problems.control import logged as data_sets
from policyopt.problems.language.base import pass_at_k
from policyopt.reports.compare import Entry, write_compare
from policyopt.reports.run import write_run_report
from policyopt.rollouts.evaluate import act_for, held_out, language_act
from policyopt.rollouts.logs import UniformPolicy, joined, logged, replayed
from policyopt.rollouts.transitions import checked
from policyopt.studies import claim as claims
from policyopt.training.checkpoint import Checkpoints, load, to_device
from policyopt.training.config import describe, flat, override
from policyopt.training.log import TensorBoard
from policyopt.training.loop import Cadence, Run, run
from policyopt.types import Budget, generator

TRACKERS = {"tensorboard": TensorBoard}


@dataclass(kw_only=True)
class Settings:
    """Everything that decides a run: what ``config.yaml`` holds and ``policyopt train --config`` repeats."""

    method: str
    problem: str
    policy: str = "tiny"
    budget: str = "100-updates"
    seed: int = 0
    overrides: dict[str, str] = field(default_factory=dict)
    sampling: str | None = None
    reward: str | None = None
    test: str | None = None
    warm_start: int = 0
    lora: int | None = None
    micro_batch: int | None = None
    dtype: str = "float32"
    device: str | None = None
    threads: int | None = None
    compile: bool = False
    evaluations: int = 20
    checkpoints: int = 10

    def build(self) -> tuple[Any, Any, Any]:
        """(method, problem, policy). Raises ValueError for whatever can't be built, before any work."""
        self.check_machine()
        registry.method(self.method)
        problem = registry.problem(self.problem, rewards=self.reward, test=self.test)
        method = self.suited(problem).configured()
        policy = registry.policy(
            self.policy, problem, seed=self.seed, dtype=self.dtype, device=self.device, lora=self.lora
        )
        return method, problem, policy

    def suited(self, problem: Any) -> Settings:
        """The same with the variant of the method that this kind of problem asks for."""
        return replace(self, method=registry.suited(self.method, problem))

    def check_machine(self) -> None:
        """Raises ValueError where there is no such device or number of threads."""
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be positive, got {self.threads}")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"the device {self.device!r} cannot be used: {error}") from error

    def configured(self, method: Any = None) -> Any:
        """The named method (or the one given) with its overrides, behind a warm start where there is one."""
        method = registry.method(self.method) if method is None else method
        if self.sampling is not None:
            method = sampled(method, self.sampling)
        for path, text in self.overrides.items():
            method = override(method, path, str(text))
        if self.micro_batch is not None:
            method = override(method, "micro_batch", str(self.micro_batch))
        if self.warm_start:
            imitation = Stage(name="imitation", method=registry.method("sft"), until=Budget(updates=self.warm_start))
            method = Stages(stages=(imitation, Stage(name="training", method=method)))
        return method


def train(
    method: Any,
    problem: Any = "arithmetic",
    policy: Any = "tiny",
    *,
    budget: str | Budget = "100-updates",
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
    trackers: Sequence[str] = (),
    **settings: Any,
) -> Run:
    """Train ``method`` on ``problem`` from ``policy``; returns the run with its rows, learner and folder.

    Each of the three is a name, as on the command line, or an object of your own: a method (``OnPolicy(…)``), a problem
    (``LanguageProblem``), a policy (``LanguagePolicy``). With names alone the run folder's ``config.yaml`` can repeat the run.
    ``out`` None makes ``runs/<method>-<problem>-<seed>-<time>``; a folder that holds a run already is refused.
    The other ``settings`` are fields of ``Settings``.
    """
    known = {f.name for f in fields(Settings)}
    for name in settings:
        if name not in known:
            raise registry.unknown("setting", name, sorted(known))
    named = [value if isinstance(value, str) else "" for value in (method, problem, policy)]
    chosen = Settings(method=named[0], problem=named[1], policy=named[2], budget=str(budget), seed=seed, **settings)
    if all(named):
        return train_from(chosen, _folder(chosen, out), progress=progress, trackers=trackers)
    chosen.check_machine()
    problem = (
        registry.problem(problem, rewards=chosen.reward, test=chosen.test) if isinstance(problem, str) else problem
    )
    method = chosen.suited(problem).configured() if isinstance(method, str) else chosen.configured(method)
    if isinstance(policy, str):
        policy = registry.policy(policy, problem, seed=seed, dtype=chosen.dtype, device=chosen.device, lora=chosen.lora)
    folder = _folder(chosen, out)
    _write_config(chosen, method, folder, repeatable=False)
    return _run(method, problem, policy, chosen, folder, progress=progress, trackers=trackers, resume=False)


def train_from(
    settings: Settings,
    folder: Path,
    *,
    resume: bool = False,
    progress: bool = True,
    trackers: Sequence[str] = (),
) -> Run:
    """Train what ``settings`` name, into ``folder`` (which must be new unless ``resume``)."""
    if settings.threads is None:
        settings = replace(settings, threads=torch.get_num_threads())
    method, problem, policy = settings.build()
    settings = settings.suited(problem)
    torch.set_num_threads(settings.threads or 1)
    bounded = hasattr(policy, "default_micro_batch") and hasattr(registry.method(settings.method), "micro_batch")
    if settings.micro_batch is None and bounded:
        settings = replace(settings, micro_batch=policy.default_micro_batch())
        method = settings.configured()
    if not resume:
        _write_config(settings, method, folder)
    return _run(method, problem, policy, settings, folder, progress=progress, trackers=trackers, resume=resume)


def _run(
    method: Any,
    problem: Any,
    policy: Any,
    settings: Settings,
    folder: Path,
    *,
    progress: bool,
    trackers: Sequence[str],
    resume: bool,
) -> Run:
    for name in trackers:
        if name not in TRACKERS:
            raise registry.unknown("tracker", name, list(TRACKERS))
    result = run(
        method,
        problem,
        policy,
        budget=Budget.parse(settings.budget),
        seed=settings.seed,
        out=folder,
        resume=resume,
        cadence=Cadence(evaluations=settings.evaluations, checkpoints=settings.checkpoints),
        trackers=[TRACKERS[name](folder / name) for name in trackers],
        progress=progress,
        compiled=settings.compile,
    )
    write_run_report(folder)
    if hasattr(result.learner.policy, "save"):
        result.learner.policy.save(folder / "policy")
    return result


def _folder(settings: Settings, out: str | Path | None) -> Path:
    if out is not None:
        return Path(out)
    names = (settings.method or "custom", settings.problem or "custom")
    stem = "-".join(re.sub(r"[^\w.]+", "-", name).strip("-")[:40] for name in names)
    return Path("runs") / f"{stem}-{settings.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def _write_config(settings: Settings, method: Any, folder: Path, repeatable: bool = True) -> None:
    if (folder / "config.yaml").exists() or (folder / "metrics.jsonl").exists():
        raise ValueError(
            f"{folder} holds a run already: choose another folder (--out), or go on with it (policyopt train --resume {folder})"
        )
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "policyopt": __version__,
        "repeatable": repeatable,
        "settings": asdict(settings),
        "resolved": describe(method),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(record, sort_keys=False))


def read_config(path: Path) -> Settings:
    """The settings in a ``config.yaml`` (or run folder). Raises ValueError where they can't repeat the run: unknown
    fields, objects that had no name, or a method whose defaults have changed since."""
    file = path / "config.yaml" if path.is_dir() else path
    if not file.exists():
        raise ValueError(f"there is no {file}; a run folder holds a config.yaml")
    try:
        record = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        raise ValueError(f"{file} is not a run's configuration: it has no `settings`")
    if not record.get("repeatable", True):
        raise ValueError(f"{file} was written by a script with objects of its own: run that script again to repeat it")
    known = {f.name for f in fields(Settings)}
    for name in record["settings"]:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise ValueError(f"{file}: unknown setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    for name in ("method", "problem"):
        if name not in record["settings"]:
            raise ValueError(f"{file}: the setting {name!r} is missing")
    settings = Settings(**record["settings"])
    _check_unchanged(settings, record.get("resolved"), file)
    return settings


def _check_unchanged(settings: Settings, resolved: Any, file: Path) -> None:
    then, now = (_comparable(tree) for tree in (resolved, describe(settings.configured())))
    if resolved is not None and then != now:
        changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        raise ValueError(
            f"{file} was written by policyopt with other defaults: {changed[0]} was {then.get(changed[0])!r} and is "
            f"{now.get(changed[0])!r}; set it with overrides, or use the version that wrote the file"
        )


def _comparable(resolved: Any) -> dict[str, Any]:
    """The leaves that decide a result; the micro-batch does not, and is resolved after the method was written down."""
    return {path: value for path, value in flat(resolved) if not path.endswith("micro_batch")}


def compare(
    names: Sequence[str],
    problem: str = "arithmetic",
    policy: str = "tiny",
    *,
    seeds: int = 5,
    budget: str = "100-updates",
    out: str | Path | None = None,
    progress: bool = True,
    **settings: Any,
) -> list[Entry]:
    """Train every named method on ``seeds`` seeds with the same budget; table, curves and page in ``out``.

    Runs that a former call finished in ``out`` are not trained again.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be positive, got {seeds}")
    for name in names:
        registry.method(name)
    target = Path(out) if out is not None else Path("runs") / f"compare-{time.strftime('%Y%m%d-%H%M%S')}"
    folders: dict[str, list[Path]] = {}
    for seed in range(seeds):
        for name in names:
            folder = target / f"{name.replace(':', '-')}-{seed}"
            folders.setdefault(name, []).append(folder)
            if (folder / "report.html").exists():
                continue
            chosen = Settings(method=name, problem=problem, policy=policy, budget=budget, seed=seed, **settings)
            train_from(chosen, folder, resume=(folder / "config.yaml").exists(), progress=progress)
    return write_compare(folders, target, budget=budget)


def load_run(folder: Path, best: bool = False) -> tuple[Any, Any]:
    """(policy, problem) of a run folder: its last state, or the best by evaluation. Raises ValueError where there is none."""
    learner, problem = load_learner(folder, best)
    return learner.policy, problem


def load_learner(folder: Path, best: bool = False) -> tuple[Any, Any]:
    """(learner, problem) of a run folder, as ``load_run``."""
    settings = read_config(folder)
    method, problem, policy = settings.build()
    learner = method.learner(problem, policy, seed=settings.seed, budget=Budget.parse(settings.budget))
    checkpoints = folder / "checkpoints"
    if best and not (checkpoints / "best").exists():
        raise ValueError(f"{folder} has no best checkpoint: no evaluation was better than the one before training")
    state = load(checkpoints / "best") if best else Checkpoints(checkpoints).latest()
    if state is None:
        raise ValueError(f"{folder} has no checkpoint yet")
    learner.load_state_dict(to_device(state["learner"], getattr(policy, "device", "cpu")))
    return learner, problem


def evaluate(folder: str | Path, *, pass_at: Sequence[int] = (), seed: int = 0, best: bool = False) -> dict[str, float]:
    """Held-out evaluation of a run: the problem's own, the greedy one, and pass@k for each k of ``pass_at``."""
    if pass_at and min(pass_at) < 1:
        raise ValueError(f"pass@k needs a k of 1 or more, got {min(pass_at)}")
    policy, problem = load_run(Path(folder), best)
    rng = generator(seed, "evaluate", 0, getattr(policy, "device", "cpu"))
    results: dict[str, float] = problem.evaluate(act_for(policy, problem, rng), rng)
    if hasattr(policy, "extend"):
        results["greedy/accuracy"] = float(held_out(policy, problem, rng, 1, greedy=True).mean())
        if pass_at:
            correct = held_out(policy, problem, rng, max(pass_at), greedy=False) >= 1.0
            results |= {f"pass@{k}": pass_at_k(correct, k) for k in pass_at}
    elif pass_at:
        raise ValueError("pass@k needs a language policy")
    return results


def fitted_q(
    folder: str | Path,
    data: str | None = None,
    *,
    gamma: float = 0.99,
    horizon: int | None = None,
    samples: int = 0,
    updates: int = FittedQ.updates,
    seed: int = 0,
    best: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Estimate:
    """What a run's policy is worth by logged data alone, of the problem ``data`` (None: of the run's own): discounted by
    ``gamma`` without a time limit, or undiscounted in episodes of at most ``horizon`` steps. ``samples`` actions are drawn
    in each state; 0 takes the greedy one. ``progress`` is told of every update."""
    policy, problem = load_run(Path(folder), best)
    source = problem if data is None else registry.problem(data)
    rows, own, other = checked(source), getattr(problem, "spaces", None), source.spaces
    if own is None or (own.observation, own.action, own.discrete) != (other.observation, other.action, other.discrete):
        raise ValueError(
            f"the data of {source.name} have other observations or actions than {folder}: {other}, not {own}"
        )
    settings = FittedQ(gamma=gamma, horizon=horizon, samples=samples, updates=updates)
    return settings(rows, policy, other, seed, progress)


def sample(
    folder: str | Path, prompts: Sequence[str], *, samples: int = 1, greedy: bool = False, seed: int = 0
) -> list[list[str]]:
    """What the trained policy answers to your prompts."""
    policy, problem = load_run(Path(folder))
    rng = generator(seed, "sample", 0, policy.device)
    return language_act(policy, problem, rng)(list(prompts), samples, greedy)


def reproduce(
    slug: str, *, seeds: int | None = None, smoke: bool = False, jobs: int = 1, out: str | Path = "results"
) -> claims.Result:
    """Run the study of a method: its paper's claim, with a verdict."""
    study = registry.study(slug)
    chosen = None if seeds is None else list(study.seeds)[:seeds]
    return claims.run(study, seeds=chosen, smoke=smoke, jobs=jobs, out=Path(out))


SOURCES = ("random", "medium", "medium-replay", "expert")


def log(
    problem: str,
    out: str | Path,
    *,
    policy: str | Path | None = None,
    medium: str | Path | None = None,
    steps: int = 10_000,
    mix: Mapping[str, float] | None = None,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Path:
    """Write a data set of ``steps`` transitions to the folder ``out``; read it as ``minari:OUT``.

    mix: shares, of sum 1, of ``random``, ``expert`` (the run folder ``policy``), ``medium`` and ``medium-replay`` (the run
    folder ``medium``, a run that was stopped early: its policy, or what it remembers). Default: all expert.
    Raises ValueError before anything is played where the mixture can't be made.
    """
    shares, target = dict(mix or {"expert": 1.0}), registry.problem(problem)
    _check_mix(shares, steps, {"expert": policy, "medium": medium, "medium-replay": medium})
    if (Path(out) / "data").exists():
        raise ValueError(f"{out} holds a data set already: choose another folder")
    spaces = getattr(target, "spaces", None)
    if spaces is None or spaces.objectives or spaces.choices:
        raise ValueError(
            f"{problem} can't be logged: it has to be a control problem with one reward, and with one choice or numbers as "
            "actions, such as gym:Pendulum-v1"
        )
    counts = {name: round(share * steps) for name, share in shares.items()}
    counts[max(counts, key=lambda name: counts[name])] += steps - sum(counts.values())
    parts, origin = [], []
    for number, (name, count) in enumerate(counts.items()):
        folder = None if name == "random" else Path(str(policy if name == "expert" else medium))
        rng = generator(seed, f"log-{name}")
        if folder is None:
            part = logged(UniformPolicy(target.spaces), target, count, seed + 1000 * number, rng, progress)
        else:
            learner, played = load_learner(folder)
            if played.name != target.name:
                raise ValueError(f"{folder} was trained on {played.name}, not on {target.name}")
            if name == "medium-replay":
                part = replayed(learner.memory, count)
            else:
                part = logged(learner.policy, target, count, seed + 1000 * number, rng, progress)
        parts.append(part)
        origin.append({"source": name, "steps": count, "run": None if folder is None else asdict(read_config(folder))})
    record = {"policyopt": __version__, "problem": problem, "seed": seed, "parts": origin}
    return data_sets.write(out, joined(parts), target.spaces, getattr(target, "id", None), record)


def _check_mix(shares: Mapping[str, float], steps: int, folders: Mapping[str, Any]) -> None:
    for name, share in shares.items():
        if name not in SOURCES:
            raise registry.unknown("source of data", name, list(SOURCES))
        if not 0.0 < share <= 1.0 or round(share * steps) < 1:
            raise ValueError(f"the share of {name} must be above 0 and at most 1, of at least one step, got {share:g}")
        if name in folders and folders[name] is None:
            option = "--policy" if name == "expert" else "--medium"
            raise ValueError(f"{name} data come from a run: name its folder with {option}")
    if abs(sum(shares.values()) - 1.0) > 1e-6:
        raise ValueError(f"the shares of the mixture must add up to 1, got {sum(shares.values()):g}")


def inspect(
    dataset: str,
    *,
    reference: str | None = None,
    random_return: float = float("nan"),
    best_return: float = float("nan"),
) -> metrics.Summary:
    """Rows, returns, quality and coverage of a data set (a Minari id or folder); ``reference`` is one of the same size."""
    data = checked(data_sets.parse(dataset))
    other = None if reference is None else checked(data_sets.parse(reference))
    return metrics.summary(data, random_return, best_return, other)
