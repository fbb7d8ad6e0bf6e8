"""Logged data sets in Minari's format: read as columns, written with where they come from.

The columns are kept beside the data set as .npy files and mapped into memory, so that a second reading costs nothing.
Actions are scaled from the data set's bounds to [−1, 1]; the evaluation environment is the one that its metadata name.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces as gym
from gymnasium.envs.registration import EnvSpec

from policyopt.problems.control.environments import Array, Control, GymnasiumProblem, Spaces, from_unit, to_unit
from policyopt.types import Transitions

SLACK = 1e-4  # of the action's range, for rounding
CACHE = "policyopt-columns"


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
        """All rows, episode after episode, mapped from disk where the folder can be written to."""
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
    except (FileNotFoundError, ValueError, ImportError) as error:
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
    state = json.dumps(
        sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in folder.iterdir() if f.is_file())
    )
    cache = folder.parent / CACHE
    if (cache / "source.json").is_file() and (cache / "source.json").read_text() == state:
        return {file.stem: np.load(file, mmap_mode="c") for file in sorted(cache.glob("*.npy"))}
    columns = _read(problem)
    try:
        fresh = Path(tempfile.mkdtemp(dir=folder.parent))
    except OSError:
        return columns  # read-only: kept in memory alone
    for name, column in columns.items():
        np.save(fresh / f"{name}.npy", column)
    (fresh / "source.json").write_text(state)
    shutil.rmtree(cache, ignore_errors=True)
    os.replace(fresh, cache)
    return {name: np.load(cache / f"{name}.npy", mmap_mode="c") for name in columns}


def _read(problem: Logged) -> dict[str, Array]:
    dataset, spaces = problem.dataset, problem.spaces
    if not len(dataset.episode_indices):
        raise ValueError(f"the data set {problem.source} is empty: it has no episodes")
    parts: dict[str, list[Array]] = {}
    row = 0
    for number, episode in enumerate(dataset.storage.get_episodes(dataset.episode_indices)):
        columns = _episode(problem.source, dataset, number, row, episode)
        row += len(columns["reward"])
        for name, column in columns.items():
            parts.setdefault(name, []).append(column)
    joined = {name: np.concatenate(pieces) for name, pieces in parts.items()}
    _check_numbers(problem.source, joined, spaces)
    if not spaces.discrete:
        joined["action"] = np.clip(to_unit(joined["action"], spaces.low, spaces.high), -1.0, 1.0)
    return joined


def _episode(source: str, dataset: Any, number: int, row: int, episode: Mapping[str, Any]) -> dict[str, Array]:
    """One episode's columns. Raises ValueError where their lengths disagree or it has no end."""
    seen, steps = _flat(dataset.observation_space, episode["observations"]), len(episode["rewards"])
    action = np.asarray(episode["actions"])
    lengths = {"actions": len(action), "terminations": len(episode["terminations"]), "observations": len(seen) - 1}
    for name, length in lengths.items():
        if length != steps:
            raise ValueError(
                f"the data set {source}: episode {number} (from row {row}) has {steps} rewards but {length} {name}"
                + (" with a next one" if name == "observations" else "")
            )
    terminated, truncated = (np.asarray(episode[k], bool) for k in ("terminations", "truncations"))
    ended = terminated | truncated
    if not steps or not ended[-1] or ended[:-1].any():
        where = (
            f"row {row + int(np.flatnonzero(ended[:-1])[0])}" if ended[:-1].any() else f"row {row + max(steps - 1, 0)}"
        )
        raise ValueError(
            f"the data set {source}: episode {number} must end at its last row and nowhere else; look at terminations and "
            f"truncations of {where}"
        )
    if isinstance(dataset.action_space, gym.Discrete):
        action = action.astype(np.int64) - int(dataset.action_space.start)
    return {
        "observation": seen[:-1],
        "action": action if action.ndim == 1 and action.dtype == np.int64 else action.reshape(steps, -1),
        "reward": np.asarray(episode["rewards"], np.float32),
        "next_observation": seen[1:],
        "terminated": terminated,
        "truncated": truncated & ~terminated,
        "episode": np.full(steps, number, np.int64),
    }


def _check_numbers(source: str, columns: Mapping[str, Array], spaces: Spaces) -> None:
    """Raises ValueError, with row and column, for numbers that aren't finite and actions outside their space."""
    for name in ("observation", "action", "reward", "next_observation"):
        bad = ~np.isfinite(columns[name])
        if bad.any():
            row = np.argwhere(bad)[0]
            raise ValueError(
                f"the data set {source}: row {row[0]} of {name} is {columns[name][tuple(row)]}; numbers must be finite"
            )
    action = columns["action"]
    if spaces.discrete:
        outside, allowed = (action < 0) | (action >= spaces.action), f"0 to {spaces.action - 1}"
    else:
        scaled = to_unit(action, spaces.low, spaces.high)
        bounded = np.isfinite(spaces.low) & np.isfinite(spaces.high)
        outside, allowed = bounded & (np.abs(scaled) > 1.0 + SLACK), f"{spaces.low} to {spaces.high}"
    if outside.any():
        row = np.argwhere(outside)[0]
        raise ValueError(
            f"the data set {source}: row {row[0]} of action is {action[row[0]]}, outside the action space ({allowed})"
        )


def write(
    target: str | Path, data: Transitions, spaces: Spaces, environment: str | None, origin: Mapping[str, Any]
) -> Path:
    """The log ``data``, with episodes, as a Minari data set in the folder ``target`` or under the id ``target`` (it has no
    leading ``.`` or ``/``). ``environment`` is a Gymnasium id; ``origin`` goes into the metadata as JSON.
    Raises ValueError where something is there already."""
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    folder = Path(target).resolve()  # Minari opens relative paths twice
    if (folder / "data").exists():
        raise ValueError(f"{folder} holds a data set already: choose another folder")
    (folder / "data").mkdir(parents=True)
    box = gym.Box(-np.inf, np.inf, (spaces.observation,), np.float32)
    low, high = (
        np.array(b or (sign,) * spaces.action, np.float32) for b, sign in ((spaces.low, -1.0), (spaces.high, 1.0))
    )
    action_space: Any = gym.Discrete(spaces.action) if spaces.discrete else gym.Box(low, high)
    storage = MinariStorage.new(
        folder / "data",
        observation_space=box,
        action_space=action_space,
        env_spec=None if environment is None else gymnasium.spec(environment),
        data_format="hdf5",
    )
    action = data.action.numpy()
    played = action if spaces.discrete else from_unit(action, low, high).astype(np.float32)
    ends = np.flatnonzero(np.diff(data.episode.numpy(), append=-1)) + 1
    storage.update_metadata(
        {"dataset_id": f"{folder.name}-v0", "minari_version": minari.__version__, "policyopt": json.dumps(dict(origin))}
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
    return folder


def parse(text: str = "") -> Logged:
    """``"D4RL/door/human-v2"`` or ``"./my-data"`` → the problem. Opens the data set, so that a wrong name fails here."""
    if not text:
        raise ValueError("which data set? Write minari:ID or minari:FOLDER")
    problem = Logged(source=text)
    assert problem.spaces
    return problem
