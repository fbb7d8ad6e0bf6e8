"""GRPO steps of policyopt and of TRL's GRPOTrainer, side by side: seconds a step, tokens a second, peak memory.

Same on both sides: weights (one saved folder), prompts in the same order, groups, reward function, learning rate,
AdamW, clipping, loss (sequence mean, clip 0.2), dtype, threads, one update a batch, no reference. Nobody has an end
token or a stop text, so every response is as long as allowed. TRL samples with `transformers`, without vLLM, and has
two settings:

    TRL           the whole batch in one forward
    TRL, pieces   one prompt's group at a time, gradients accumulated: what it offers against a high peak

Speed is compared with TRL's faster setting, memory with its leaner one. Every measurement has a process of its own; the
arms alternate. Memory is what training adds to the loaded model: resident memory on the CPU, allocated memory on a GPU.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from side_by_side import MIB, Arms, Measured, Meter, alternate, apart, note, peak, plain_trainer, step_seconds

OURS, WHOLE, PIECES = "policyopt", "TRL", "TRL, pieces"
SAMPLES, NEW_TOKENS = (8, 16, 32, 64), (16, 64, 256)  # of --growth


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    model: Literal["tiny", "smollm2", "both"] = "both"
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = 2
    prompts: int = 4
    samples: int = 8
    new_tokens: int = 16
    learning_rate: float = 1e-6
    warmup: int = 2  # steps that are not counted
    steps: int = 5  # steps that are
    repeats: int = 3
    growth: bool = False  # also how the cost grows with samples and with new tokens
    patience: float = 300.0  # seconds after which a measurement of --growth is given up


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One measurement, for a process of its own."""

    arm: str
    model: str
    folder: str
    options: Options


# -- the work, the same for all


@dataclass(frozen=True)
class Endless:
    """A problem whose responses end at the length limit alone; all else is the problem's own."""

    problem: Any
    max_new_tokens: int
    stop: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.problem, name)


def problem(setting: Setting) -> Endless:
    from policyopt.problems.language.arithmetic import Arithmetic
    from policyopt.problems.language.reasoning import ReasoningGym

    made = Arithmetic() if setting.model == "tiny" else ReasoningGym(dataset="chain_sum")
    return Endless(made, setting.options.new_tokens)


def save_model(setting: Setting) -> bool:
    """Write the weights that all arms load; those of a fresh tiny model where none is shipped."""
    from policyopt.models.load import load_policy
    from policyopt.models.tiny import SHIPPED

    fresh = setting.model == "tiny" and not SHIPPED.exists()
    load_policy("fresh" if fresh else setting.model, device="cpu").save(Path(setting.folder))
    return True


# -- what a process uses


def check_tokens(setting: Setting, mean_length: float) -> None:
    if mean_length != setting.options.new_tokens:
        raise RuntimeError(f"{setting.arm}: responses of {mean_length} tokens instead of {setting.options.new_tokens}")


# -- the two sides


def measure_ours(setting: Setting) -> Measured:
    from policyopt.learners.update import Adam
    from policyopt.methods import grpo
    from policyopt.models.load import load_policy
    from policyopt.rollouts.language import Groups

    options = setting.options
    policy = load_policy(setting.folder, dtype=options.dtype, device=options.device)
    policy.tokenizer.eos_token = policy.core.generation_config.eos_token_id = None
    method = replace(
        grpo.method(),
        collector=Groups(prompts=options.prompts, samples=options.samples),
        optimizer=Adam(learning_rate=options.learning_rate),
    )
    meter = Meter(options.device)
    learner = method.learner(problem(setting), policy, seed=0)
    meter.stamp()
    for _ in range(options.warmup + options.steps):
        numbers = {name: float(value) for name, value in learner.step().items()}
        meter.stamp()
        check_tokens(setting, numbers["response/length"])
    return meter.measured(options.steps)


def measure_trl(setting: Setting) -> Measured:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl.trainer.grpo_trainer import GRPOTrainer

    options, work = setting.options, problem(setting)
    prompts = trl_prompts(work, options)
    tokenizer = AutoTokenizer.from_pretrained(setting.folder)
    model: Any = AutoModelForCausalLM.from_pretrained(setting.folder, dtype=getattr(torch, options.dtype))

    def reward(completions: list[str], id: list[int], **_: Any) -> list[float | None]:
        scores: list[float | None] = work.score(id, completions)["reward"].tolist()
        return scores

    model.to(options.device)

    class Stamps(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            meter.stamp()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.stamp()

    meter = Meter(options.device)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=trl_settings(setting),
        train_dataset=prompts,
        processing_class=tokenizer,
        callbacks=[Stamps()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.eos_token_ids = []
    trainer.train()
    for mean_length in trainer._metrics["train"]["completions/mean_length"]:
        check_tokens(setting, mean_length)
    return meter.measured(options.steps)


def trl_settings(setting: Setting) -> Any:
    from trl.trainer.grpo_config import GRPOConfig

    options = setting.options
    pieces = options.prompts if setting.arm == PIECES else 1
    return GRPOConfig(
        output_dir=setting.folder,
        max_steps=options.warmup + options.steps,
        per_device_train_batch_size=options.prompts * options.samples // pieces,
        gradient_accumulation_steps=pieces,
        steps_per_generation=pieces,
        num_generations=options.samples,
        max_completion_length=options.new_tokens,
        generation_kwargs={"eos_token_id": None},
        loss_type="grpo",
        beta=0.0,
        temperature=1.0,
        learning_rate=options.learning_rate,
        shuffle_dataset=False,
        **plain_trainer(options.device),
    )


def trl_prompts(work: Endless, options: Options) -> Any:
    """The prompts that our collector draws, in its order."""
    from datasets import Dataset

    from policyopt.rollouts.language import prompt_ids
    from policyopt.types import Clock

    clocks = (Clock(seed=0, step=step) for step in range(options.warmup + options.steps))
    ids = [i for clock in clocks for i in prompt_ids(work, options.prompts, clock)]
    return Dataset.from_dict({"prompt": work.prompts(ids), "id": ids})


# -- processes


def measure(setting: Setting) -> Measured:
    import torch

    torch.set_num_threads(setting.options.threads)
    return (measure_ours if setting.arm == OURS else measure_trl)(setting)


@contextmanager
def saved(model: str, options: Options) -> Iterator[Setting]:
    """Our setting, with the model in a temporary folder."""
    with TemporaryDirectory() as folder:
        setting = Setting(arm=OURS, model=model, folder=folder, options=options)
        apart(save_model, setting)
        yield setting


# -- numbers


def summary(arms: Arms) -> dict[str, Any]:
    """Ratios of the medians, and how far the speed ratio of single repeats ranges."""
    seconds = {arm: step_seconds(measured) for arm, measured in arms.items()}
    peaks = {arm: peak(measured) for arm, measured in arms.items()}
    fastest = min((WHOLE, PIECES), key=seconds.__getitem__)
    leanest = min((WHOLE, PIECES), key=peaks.__getitem__)
    paired = [step_seconds([peer]) / step_seconds([own]) for own, peer in zip(arms[OURS], arms[fastest], strict=True)]
    return {
        "ratio": round(seconds[fastest] / seconds[OURS], 3),
        "ratio_range": [round(min(paired), 3), round(max(paired), 3)],
        "memory_ratio": round(peaks[OURS] / peaks[leanest], 3),
        "seconds_per_step": {arm: round(value, 4) for arm, value in seconds.items()},
        "peak_mib": {arm: round(value / MIB, 1) for arm, value in peaks.items()},
    }


def comparison(model: str, options: Options, numbers: Mapping[str, Any]) -> Table:
    """seconds a step, tokens a second, memory, and both relative to ours."""
    title = f"{model}: {options.prompts} prompts x {options.samples} samples x {options.new_tokens} tokens"
    table = Table("", "s/step", "tokens/s", "peak MiB", "time / ours", "memory / ours", title=title)
    seconds, peaks = numbers["seconds_per_step"], numbers["peak_mib"]
    tokens = options.prompts * options.samples * options.new_tokens
    for arm in seconds:
        relative = seconds[arm] / seconds[OURS], peaks[arm] / max(peaks[OURS], 0.1)
        shares = (f"{value:.2f}" for value in relative)
        table.add_row(arm, f"{seconds[arm]:.4g}", f"{tokens / seconds[arm]:.0f}", f"{peaks[arm]:.0f}", *shares)
    return table


def growth(setting: Setting) -> tuple[Table, list[dict[str, Any]]]:
    """One measurement an arm along each axis, the other one as given."""
    options, rows = setting.options, []
    table = Table("samples", "new tokens", "arm", "s/step", "tokens/s", "peak MiB", title=f"{setting.model}: growth")
    points = [(n, options.new_tokens) for n in SAMPLES] + [(options.samples, n) for n in NEW_TOKENS]
    for samples, new_tokens in dict.fromkeys(points):
        for arm in (OURS, WHOLE, PIECES):
            note(f"{arm}, {samples} samples of {new_tokens} tokens")
            sized = replace(options, samples=samples, new_tokens=new_tokens)
            one = apart(measure, replace(setting, arm=arm, options=sized), options.patience)
            table.add_row(str(samples), str(new_tokens), arm, *_cells(sized, one))
            if one is not None:
                seconds, peak_mib = round(step_seconds([one]), 4), round(one.peak / MIB, 1)
                rows.append(
                    {"arm": arm, "samples": samples, "new_tokens": new_tokens, "s": seconds, "peak_mib": peak_mib}
                )
    return table, rows


def _cells(options: Options, one: Measured | None) -> tuple[str, str, str]:
    if one is None:
        return "-", "-", "-"
    seconds = step_seconds([one])
    tokens = options.prompts * options.samples * options.new_tokens
    return f"{seconds:.4g}", f"{tokens / seconds:.0f}", f"{one.peak / MIB:.0f}"


def main(options: Options) -> None:
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit ends the measurement's process, too
    console, models = Console(), dict[str, Any]()
    for model in ("tiny", "smollm2") if options.model == "both" else (options.model,):
        with saved(model, options) as setting:
            settings = {arm: replace(setting, arm=arm) for arm in (OURS, WHOLE, PIECES)}
            models[model] = summary(alternate(measure, settings, options.repeats))
            console.print(comparison(model, options, models[model]))
            if options.growth:
                table, models[model]["growth"] = growth(setting)
                console.print(table)
    worst = {
        "ratio": min(numbers["ratio"] for numbers in models.values()),
        "memory_ratio": max(numbers["memory_ratio"] for numbers in models.values()),
    }
    print(json.dumps({"benchmark": "grpo_vs_trl", **worst, "models": models, "options": asdict(options)}))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
