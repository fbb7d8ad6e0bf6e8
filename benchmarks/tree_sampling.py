"""Trees of responses beside independent samples, at equal numbers of responses: decoded and forwarded tokens, time, peak memory.

Responses never end by themselves, so that all arms give the same number of responses of the same length. A tree doubles its
paths at every segment until it is wide enough:

    independent    every response sampled on its own behind the shared prompt
    fixed          a tree of fixed branching; a level's keys and values are let go when the next has them
    budgeted       TreePO's budget with its fallback, for which the keys and values of all levels are kept

``decoded`` and ``forwarded`` are exact counts of tokens sampled and tokens put through the model. Every measurement has a process
of its own; the arms alternate. Memory is what sampling adds to the loaded model.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from side_by_side import MIB, Measured, Meter, alternate, peak, step_seconds

INDEPENDENT, FIXED, BUDGETED = "independent", "fixed", "budgeted"
MODELS = {"tiny": {}, "deep": {"layers": 12, "width": 256, "heads": 4, "context": 2048}}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure. ``deep`` is a random model of 12 layers and width 256, ``tiny`` the shipped one's shape."""

    model: Literal["tiny", "deep", "both"] = "both"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    clock: Literal["wall", "cpu"] = "cpu"
    prompts: int = 4
    prompt_tokens: int = 32
    new_tokens: int = 96
    widths: tuple[int, ...] = (4, 16, 64)  # responses a prompt, at a depth of 6
    depths: tuple[int, ...] = (2, 6, 24)  # segments a response, at a width of 16
    warmup: int = 1  # rounds that are not counted
    steps: int = 2  # rounds that are
    repeats: int = 2


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One measurement, for a process of its own."""

    arm: str
    model: str
    width: int
    depth: int
    options: Options


@dataclass(frozen=True, kw_only=True)
class Counted(Measured):
    """Beside time and memory, the tokens of a round."""

    decoded: int
    forwarded: int


class Digits:
    """Prompts of random digits, without an end."""

    stop: tuple[str, ...] = ()

    def __init__(self, options: Options) -> None:
        self.length, self.max_new_tokens = options.prompt_tokens, options.new_tokens

    def prompts(self, ids: list[int]) -> list[str]:
        return ["".join(Random(i).choices("0123456789", k=self.length)) for i in ids]


def endless(setting: Setting) -> Any:
    """A policy that knows no end token."""
    import torch

    from policyopt.models.language import LanguagePolicy
    from policyopt.models.tiny import character_tokenizer, tiny_model

    class Endless(LanguagePolicy):
        @property
        def end_tokens(self) -> torch.Tensor:
            return torch.tensor([], dtype=torch.int64, device=self.device)

    tokenizer = character_tokenizer()
    return Endless(tiny_model(0, len(tokenizer), **MODELS[setting.model]).to(setting.options.device), tokenizer)


def sample(setting: Setting, policy: Any, round_: int) -> tuple[int, int]:
    """One round of responses; → tokens decoded and tokens forwarded."""
    from policyopt.models.language import Sampling
    from policyopt.rollouts.language import respond
    from policyopt.rollouts.tree import Budgeted, Fixed, grow
    from policyopt.types import generator

    options, problem = setting.options, Digits(setting.options)
    ids, rng = list(range(options.prompts)), generator(round_, "sample", device=options.device)
    if setting.arm == INDEPENDENT:
        sampled = respond(policy, problem, ids, setting.width, Sampling(), rng)
        responses, made = len(sampled.length), (sampled.sampled_tokens, sampled.forward_tokens)
    else:
        segment, doublings = options.new_tokens // setting.depth, setting.width.bit_length() - 1
        factors = tuple(2 if level < doublings else 1 for level in range(setting.depth))
        if doublings > setting.depth:
            factors = (2 ** (doublings - setting.depth + 1), *factors[1:])
        branching = (
            Fixed(factors=factors, segment=segment)
            if setting.arm == FIXED
            else Budgeted(width=setting.width, segment=segment, depth=setting.depth, first=factors[:1] * 2)
        )
        forest = grow(policy, problem, ids, branching, Sampling(), rng, generator(round_, "tree"))
        responses, made = len(forest.leaves), (forest.sampled_tokens, forest.forward_tokens)
    if responses != options.prompts * setting.width:
        raise RuntimeError(f"{setting.arm} gave {responses} responses, not {options.prompts * setting.width}")
    return made


def measure(setting: Setting) -> Counted:
    import torch

    torch.set_num_threads(setting.options.threads)
    policy = endless(setting)
    meter = Meter(setting.options.device, time.process_time if setting.options.clock == "cpu" else time.perf_counter)
    meter.stamp()
    decoded = forwarded = 0
    for number in range(setting.options.warmup + setting.options.steps):
        decoded, forwarded = sample(setting, policy, number)
        meter.stamp()
    measured = meter.measured(setting.options.steps)
    return Counted(seconds=measured.seconds, peak=measured.peak, decoded=decoded, forwarded=forwarded)


def point(model: str, width: int, depth: int, options: Options) -> dict[str, Any]:
    """All arms at one width and depth."""
    settings = {
        arm: Setting(arm=arm, model=model, width=width, depth=depth, options=options)
        for arm in (INDEPENDENT, FIXED, BUDGETED)
    }
    found = {}
    for arm, measured in alternate(measure, settings, options.repeats).items():
        found[arm] = {
            "decoded": measured[0].decoded,
            "forwarded": measured[0].forwarded,
            "seconds": round(step_seconds(measured), 4),
            "peak_mib": round(peak(measured) / MIB, 1),
        }
    return {"model": model, "width": width, "depth": depth, "arms": found}


def main(options: Options) -> None:
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit ends the measurement's process, too
    points = list(dict.fromkeys([*((w, 6) for w in options.widths), *((16, d) for d in options.depths)]))
    models = ("tiny", "deep") if options.model == "both" else (options.model,)
    found = [point(model, width, depth, options) for model in models for width, depth in points]
    table = Table("model", "width", "depth", "arm", "decoded", "forwarded", "seconds", "tokens/s", "peak MiB")
    for one in found:
        for arm, numbers in one["arms"].items():
            whole = options.prompts * one["width"] * options.new_tokens
            speed = f"{whole / numbers['seconds']:.0f}"
            shown = (one["model"], one["width"], one["depth"], arm, numbers["decoded"], numbers["forwarded"])
            table.add_row(*map(str, shown), f"{numbers['seconds']:.3g}", speed, f"{numbers['peak_mib']:.0f}")
    Console().print(table)
    ratios = [one["arms"][INDEPENDENT]["seconds"] / one["arms"][FIXED]["seconds"] for one in found]
    memory = [one["arms"][FIXED]["peak_mib"] / max(one["arms"][INDEPENDENT]["peak_mib"], 0.1) for one in found]
    worst = {"ratio": round(min(ratios), 3), "memory_ratio": round(max(memory), 3)}
    print(json.dumps({"benchmark": "tree_sampling", **worst, "points": found, "options": asdict(options)}))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
