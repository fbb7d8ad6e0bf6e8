"""The memory of off-policy learners beside TorchRL's buffers: microseconds for a batch, and for one transition more.

The same rows, those of HalfCheetah, the same capacity and batch, one thread. TorchRL's buffer keeps its rows in memory or mapped
from disk. Each number is the best of the repeats.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import tyro

OBSERVATION, ACTION = 17, 6


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure: ``calls`` in a row, ``repeats`` times."""

    rows: int = 100_000
    batch: int = 256
    calls: int = 300
    repeats: int = 5


def columns(count: int) -> dict[str, torch.Tensor]:
    return {
        "observation": torch.randn(count, OBSERVATION),
        "action": torch.randn(count, ACTION),
        "reward": torch.randn(count),
        "next_observation": torch.randn(count, OBSERVATION),
        "terminated": torch.zeros(count, dtype=torch.bool),
    }


def microseconds(call: Callable[[], Any], options: Options) -> float:
    best = float("inf")
    for _ in range(options.repeats):
        before = time.process_time()
        for _ in range(options.calls):
            call()
        best = min(best, (time.process_time() - before) / options.calls)
    return round(1e6 * best, 1)


def ours(options: Options) -> dict[str, float]:
    from policyopt.rollouts.replay import Replay
    from policyopt.types import Transitions, generator

    memory, rng = Replay(options.rows), generator(0, "batch")
    memory.add(Transitions(**columns(options.rows), batch_size=[options.rows]))
    one = Transitions(**columns(1), batch_size=[1])
    return {
        "sample": microseconds(lambda: memory.sample(options.batch, rng), options),
        "add": microseconds(lambda: memory.add(one), options),
    }


def peer(storage: str, options: Options) -> dict[str, float]:
    from tensordict import TensorDict
    from torchrl import data

    kept = getattr(data, storage)(options.rows)
    memory = data.TensorDictReplayBuffer(storage=kept, batch_size=options.batch)
    memory.extend(TensorDict(columns(options.rows), [options.rows]))
    one = TensorDict(columns(1), [1])
    return {
        "sample": microseconds(memory.sample, options),
        "add": microseconds(lambda: memory.extend(one), options),
    }


def main(options: Options) -> None:
    torch.set_num_threads(1)
    found = {
        "policyopt": ours(options),
        "torchrl, memory": peer("LazyTensorStorage", options),
        "torchrl, disk": peer("LazyMemmapStorage", options),
    }
    print(json.dumps({"benchmark": "replay_vs_torchrl", "microseconds": found, "options": asdict(options)}))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
