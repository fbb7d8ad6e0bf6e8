"""Logged data sets in Minari's format: read as columns, written with where they come from.

The columns are kept beside the data set as .npy files and mapped into memory, so that a second reading costs nothing.
Actions are scaled from the data set's bounds to [−1, 1]; the evaluation environment is the one that its metadata name.
Whether an episode is complete is part of its own metadata. Here files are read; the numbers in them are looked at by
``rollouts.transitions.checked``, as those of every other data set.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces as gym
from gymnasium.envs.registration import EnvSpec

from policyopt.problems.control.environments import Array, Control, GymnasiumProblem, Spaces, UnitBox
from policyopt.types import Transitions

SLACK = 1e-4  # beyond ±1, for rounding
CACHE = "policyopt-columns"
CACHE_VERSION = 2
COLUMNS = (
    "observation",
    "action",
    "reward",
    "next_observation",
    "terminated",
    "truncated",
    "episode",
    "complete",
)


@dataclass(frozen=True, kw_only=True)
class Logged(Control):
    """The data set ``source``: a Minari id, or the folder of one. Raises ValueError where there is none or it is broken."""

    source: str

    @property
    def name(self) -> str:
        return f"minari-{self.source}"

    @cached_property
    def dataset(self) -> Any:
        return opened(self.source)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """As the data set has them; ours, where we wrote it, under ``policyopt``."""
        found = dict(self.dataset.storage.metadata)
        return {**found, "policyopt": json.loads(found.get("policyopt", "{}"))}

    @cached_property
    def spaces(self) -> Spaces:  # type: ignore[override]
        action = self.dataset.action_space
        if not isinstance(action, gym.Box | gym.Discrete):
            raise ValueError(f"{self.source}: actions must be a Box or Discrete space, got {action}")
        discrete = isinstance(action, gym.Discrete)
        return Spaces(
            observation=_width(self.dataset.observation_space, self.source),
            action=int(action.n) if isinstance(action, gym.Discrete) else int(np.prod(action.shape)),
            discrete=discrete,
            low=tuple(action.low.ravel().tolist()) if isinstance(action, gym.Box) else (),
            high=tuple(action.high.ravel().tolist()) if isinstance(action, gym.Box) else (),
        )

    @cached_property
    def environment(self) -> GymnasiumProblem | None:
        """Where policies are evaluated: None where the metadata name nothing that is installed and fits."""
        text = self.metadata.get("eval_env_spec")
        spec = EnvSpec.from_json(text) if text else self.dataset.env_spec
        if spec is None or spec.id not in gymnasium.registry:
            return None
        problem = GymnasiumProblem(id=spec.id, options=dict(spec.kwargs), episodes=self.episodes)
        try:
            fits = problem.spaces == self.spaces
        except ValueError:
            return None
        return problem if fits else None

    def make(self, n: int, seed: int) -> Any:
        if self.environment is None:
            raise ValueError(f"{self.source} has no environment that is installed here, so nothing can be played")
        return self.environment.make(n, seed)

    def evaluate(self, act: Any, rng: torch.Generator) -> dict[str, float]:
        """As the environment's; nothing where there is none."""
        return {} if self.environment is None else super().evaluate(act, rng)

    def transitions(self) -> Transitions:
        """All rows, episode after episode, mapped from disk where the folder can be written to. Raises ValueError where the
        files can't be read as columns."""
        columns: dict[str, Any] = {name: torch.from_numpy(column) for name, column in _columns(self).items()}
        return Transitions(**columns, batch_size=[len(columns["reward"])])


def opened(source: str) -> Any:
    """The Minari data set of an id or a folder."""
    try:
        import minari
    except ImportError as error:
        raise ValueError(f"data sets need another package: {error} (pip install policyopt[offline])") from error
    folder = Path(source).resolve()
    try:
        if folder.is_dir():
            return minari.MinariDataset(folder / "data" if (folder / "data").is_dir() else folder)
        return minari.load_dataset(source)
    except (FileNotFoundError, ValueError, KeyError, ImportError) as error:
        raise ValueError(
            f"cannot open the data set {source!r}: {error}. It must be a folder, or an id that `minari list local` shows "
            "(`minari download ID` fetches one)"
        ) from error


def _width(space: gymnasium.Space[Any], where: str) -> int:
    if isinstance(space, gym.Dict):
        return sum(_width(inner, where) for inner in space.spaces.values())
    if isinstance(space, gym.Discrete):
        return int(space.n)
    if isinstance(space, gym.Box):
        return int(np.prod(space.shape))
    raise ValueError(f"{where}: observations must be Box, Discrete or Dict spaces, got {space}")


def _flat(space: gymnasium.Space[Any], values: Any) -> Array:
    """Observations of an episode [T + 1, …] → [T + 1, S]."""
    if isinstance(space, gym.Dict):
        return np.concatenate([_flat(inner, values[key]) for key, inner in space.spaces.items()], 1)
    if isinstance(space, gym.Discrete):
        return np.eye(int(space.n), dtype=np.float32)[np.asarray(values) - int(space.start)]
    return np.asarray(values, np.float32).reshape(len(values), -1)


def _columns(problem: Logged) -> dict[str, Array]:
    folder = Path(problem.dataset.storage.data_path)
    files = sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in folder.iterdir() if f.is_file())
    state, cache = json.dumps([CACHE_VERSION, files]), folder.parent / CACHE
    if not (cache / "source.json").is_file() or (cache / "source.json").read_text() != state:
        columns = _read(problem)
        try:
            with _replacing(cache) as fresh:
                for name, column in columns.items():
                    np.save(fresh / f"{name}.npy", column)
                (fresh / "source.json").write_text(state)
        except OSError:
            return columns  # read-only: kept in memory alone
    return {file.stem: np.load(file, mmap_mode="c") for file in sorted(cache.glob("*.npy"))}


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of ``folder`` when the block is through; where it fails nothing is left."""
    with TemporaryDirectory(dir=folder.parent) as aside:
        made = Path(aside) / folder.name
        made.mkdir()
        yield made
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(made, folder)


def _read(problem: Logged) -> dict[str, Array]:
    dataset, spaces = problem.dataset, problem.spaces
    action = np.empty(0, np.int64) if spaces.discrete else np.empty((0, spaces.action), np.float32)
    seen, flag = np.empty((0, spaces.observation), np.float32), np.empty(0, bool)
    empty = (seen, action, np.empty(0, np.float32), seen, flag, flag, np.empty(0, np.int64), flag)
    parts: dict[str, list[Array]] = {name: [column] for name, column in zip(COLUMNS, empty, strict=True)}
    numbers, row = dataset.episode_indices, 0
    readers = (dataset.storage.get_episodes, dataset.storage.get_episode_metadata) if len(numbers) else ()
    for number, (episode, about) in enumerate(zip(*(read(numbers) for read in readers), strict=True)):
        where = f"the data set {problem.source}: episode {number} (from row {row})"
        columns = _episode(where, problem, episode)
        steps = len(columns["reward"])
        columns["episode"] = np.full(steps, number, np.int64)
        columns["complete"] = np.full(steps, bool(about.get("complete", True)))
        row += steps
        for name in COLUMNS:
            parts[name].append(columns[name])
    joined = {name: np.concatenate(pieces) for name, pieces in parts.items()}
    if not spaces.discrete:
        scaled = UnitBox(spaces.low, spaces.high).to_unit(joined["action"])
        joined["action"] = np.where(np.abs(scaled) <= 1.0 + SLACK, np.clip(scaled, -1.0, 1.0), scaled)
    return joined


def _episode(where: str, problem: Logged, episode: Mapping[str, Any]) -> dict[str, Array]:
    """One episode's columns. Raises ValueError where their lengths or widths disagree, for then there are no columns."""
    dataset, spaces, steps = problem.dataset, problem.spaces, len(episode["rewards"])
    if not steps:
        raise ValueError(f"{where} has no steps")
    seen, action = _flat(dataset.observation_space, episode["observations"]), np.asarray(episode["actions"])
    lengths = {"actions": len(action), "terminations": len(episode["terminations"]), "observations": len(seen) - 1}
    for name, length in lengths.items():
        if length != steps:
            with_next = " with a next one" if name == "observations" else ""
            raise ValueError(f"{where} has {steps} rewards but {length} {name}{with_next}")
    if isinstance(dataset.action_space, gym.Discrete):
        action = action.astype(np.int64) - int(dataset.action_space.start)
    else:
        action = action.reshape(steps, -1)
    for name, column, width in (("observations", seen, spaces.observation), ("actions", action, spaces.action)):
        if column.ndim > 1 and column.shape[1] != width:
            raise ValueError(f"{where} has {name} of {column.shape[1]} numbers, the data set's space says {width}")
    terminated, truncated = (np.asarray(episode[k], bool) for k in ("terminations", "truncations"))
    return {
        "observation": seen[:-1],
        "action": action,
        "reward": np.asarray(episode["rewards"], np.float32),
        "next_observation": seen[1:],
        "terminated": terminated,
        "truncated": truncated & ~terminated,
    }


def write(
    target: str | Path, data: Transitions, spaces: Spaces, environment: str | None, origin: Mapping[str, Any]
) -> Path:
    """The log ``data``, with episodes, as a Minari data set in the folder ``target`` or under the id ``target`` (it has no
    leading ``.`` or ``/``). ``environment`` is a Gymnasium id; ``origin`` goes into the metadata as JSON.
    Raises ValueError where something is there already."""
    folder = Path(target).resolve()  # Minari opens relative paths twice
    if (folder / "data").exists():
        raise ValueError(f"{folder} holds a data set already: choose another folder")
    made_here = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _replacing(folder / "data") as fresh:
            _store(fresh, f"{folder.name}-v0", data, spaces, environment, origin)
    except BaseException:
        if made_here:
            folder.rmdir()
        raise
    return folder


def _store(
    folder: Path, name: str, data: Transitions, spaces: Spaces, environment: str | None, origin: Mapping[str, Any]
) -> None:
    """Write the log into an empty folder."""
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    box = gym.Box(-np.inf, np.inf, (spaces.observation,), np.float32)
    low, high = (
        np.array(b or (sign,) * spaces.action, np.float32) for b, sign in ((spaces.low, -1.0), (spaces.high, 1.0))
    )
    action_space: Any = gym.Discrete(spaces.action) if spaces.discrete else gym.Box(low, high)
    storage = MinariStorage.new(
        folder,
        observation_space=box,
        action_space=action_space,
        env_spec=None if environment is None else gymnasium.spec(environment),
        data_format="hdf5",
    )
    action = data.action.numpy()
    played = action if spaces.discrete else UnitBox(low, high).from_unit(action).astype(np.float32)
    ends = np.flatnonzero(np.diff(data.episode.numpy(), append=-1)) + 1
    storage.update_metadata(
        {"dataset_id": name, "minari_version": minari.__version__, "policyopt": json.dumps(dict(origin))}
    )
    storage.update_episodes(
        EpisodeBuffer(
            id=number,
            observations=np.concatenate([data.observation[a:b], data.next_observation[b - 1 : b]]),  # type: ignore[arg-type]
            actions=played[a:b],
            rewards=data.reward[a:b].numpy(),  # type: ignore[arg-type]
            terminations=data.terminated[a:b].numpy(),  # type: ignore[arg-type]
            truncations=data.truncated[a:b].numpy(),  # type: ignore[arg-type]
        )
        for number, (a, b) in enumerate(zip([0, *ends[:-1]], ends, strict=True))
    )
    if data.complete is not None:
        storage.update_episode_metadata(
            {"complete": bool(whole)} for whole in data.complete[torch.from_numpy(ends - 1)]
        )


def parse(text: str = "") -> Logged:
    """``"D4RL/door/human-v2"`` or ``"./my-data"`` → the problem. Opens the data set, so that a wrong name fails here."""
    if not text:
        raise ValueError("which data set? Write minari:ID or minari:FOLDER")
    problem = Logged(source=text)
    assert problem.spaces
    return problem
