"""DPO steps of policyopt and of TRL's DPOTrainer, side by side: pairs a second and peak memory.

Same on both sides: weights (one saved folder), pairs in the same order, loss (sigmoid, β = 0.1), reference (the initial
weights, its log-probabilities computed in every step: one pass over fresh pairs), learning rate, AdamW, clipping, dtype, threads,
one update a batch. Prompts have 30 to 60 words and responses 10 to 40, drawn from a fixed vocabulary of common words. Both run in
two settings:

    policyopt, TRL    policyopt with the micro-batch that it chooses by itself; TRL with the whole batch in one forward
    …, pieces         one pair at a time, gradients accumulated: what both offer against a high peak

Speed is compared between the faster settings, memory between the leaner ones. Every measurement has a process of its own; the
arms alternate. Memory is what training adds to the loaded model: resident memory on the CPU, allocated memory on a GPU.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from side_by_side import MIB, Arms, Measured, Meter, alternate, apart, peak, plain_trainer, step_seconds

OURS, OUR_PIECES, WHOLE, PIECES = "policyopt", "policyopt, pieces", "TRL", "TRL, pieces"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
WORDS = """time person year way day thing man world life hand part child eye woman place work week case point company number group
problem fact good new first last long great"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = 2
    clock: Literal["wall", "cpu"] = "wall"  # cpu: the process's own seconds, for one thread on a busy machine
    pairs: int = 8
    learning_rate: float = 1e-6
    warmup: int = 1  # steps that are not counted
    steps: int = 3  # steps that are
    repeats: int = 1  # of all arms


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One measurement, for a process of its own."""

    arm: str
    folder: str
    options: Options


def rows(options: Options) -> list[dict[str, str]]:
    """The pairs of all steps."""
    rng, words = Random(0), WORDS.split()

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(low, high)))

    count = options.pairs * (options.warmup + options.steps)
    return [{"prompt": text(30, 60) + "\n", "chosen": text(10, 40), "rejected": text(10, 40)} for _ in range(count)]


def work(options: Options) -> Any:
    """The pairs as a problem; what is held out is not used."""
    from policyopt.problems.language.preferences import PreferenceProblem, normalized

    data = normalized(rows(options), "pairs")
    return PreferenceProblem(name="pairs", train=data, test=[{**data[0], "prompt": "held out"}], max_new_tokens=256)


def ordered_rows(options: Options) -> list[dict[str, str]]:
    """The pairs in the order in which our collector draws them."""
    from policyopt.rollouts.language import prompt_ids
    from policyopt.types import Clock

    clocks = (Clock(seed=0, step=step) for step in range(options.warmup + options.steps))
    drawn, problem = rows(options), work(options)
    return [drawn[i] for clock in clocks for i in prompt_ids(problem, options.pairs, clock)]


def check_tokens(setting: Setting, got: float, texts: Sequence[str], tokenizer: Any) -> None:
    """Raise RuntimeError unless ``got`` tokens are those of ``texts`` with an end token behind each."""
    expected = sum(len(ids) + 1 for ids in tokenizer(list(texts))["input_ids"])
    if got != expected:
        raise RuntimeError(f"{setting.arm}: trained on {got} tokens; the pairs have {expected}")


def save_model(setting: Setting) -> bool:
    """Write the weights that all arms load."""
    from policyopt.models.load import load_policy

    load_policy("smollm2", device="cpu").save(Path(setting.folder))
    return True


def measure(setting: Setting) -> Measured:
    import torch

    torch.set_num_threads(setting.options.threads)
    return (measure_ours if setting.arm in (OURS, OUR_PIECES) else measure_trl)(setting)


def measure_ours(setting: Setting) -> Measured:
    from policyopt.learners.annotators import Reference
    from policyopt.learners.update import Adam
    from policyopt.methods import dpo
    from policyopt.models.load import load_policy
    from policyopt.rollouts.preferences import Rankings

    options = setting.options
    policy = load_policy(setting.folder, dtype=options.dtype, device=options.device)
    method = replace(
        dpo.method(),
        collector=Rankings(prompts=options.pairs, held_out_prompts=0),
        annotators=(Reference(),),
        optimizer=Adam(learning_rate=options.learning_rate),
        micro_batch=1 if setting.arm == OUR_PIECES else None,
    )
    meter, tokens = Meter(options.device, CLOCKS[options.clock]), 0.0
    learner = method.learner(work(options), policy, seed=0)
    meter.stamp()
    for _ in range(options.warmup + options.steps):
        tokens += float(learner.step()["cost/tokens"])
        meter.stamp()
    responses = [row[side] for row in rows(options) for side in ("chosen", "rejected")]
    check_tokens(setting, tokens, responses, policy.tokenizer)
    return meter.measured(options.steps)


def measure_trl(setting: Setting) -> Measured:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl.trainer.dpo_trainer import DPOTrainer

    options = setting.options
    tokenizer = AutoTokenizer.from_pretrained(setting.folder)
    model: Any = AutoModelForCausalLM.from_pretrained(setting.folder, dtype=getattr(torch, options.dtype))
    model.to(options.device)

    class Stamps(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            meter.stamp()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.stamp()

    meter = Meter(options.device, CLOCKS[options.clock])
    trainer = DPOTrainer(
        model=model,
        args=trl_settings(setting),
        train_dataset=Dataset.from_list(ordered_rows(options)),
        processing_class=tokenizer,
        callbacks=[Stamps()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    texts = [row["prompt"] + row[side] for row in rows(options) for side in ("chosen", "rejected")]
    check_tokens(setting, float(trainer._total_train_tokens), texts, tokenizer)
    return meter.measured(options.steps)


def trl_settings(setting: Setting) -> Any:
    from trl.trainer.dpo_config import DPOConfig

    options = setting.options
    pieces = options.pairs if setting.arm == PIECES else 1
    return DPOConfig(
        output_dir=setting.folder,
        max_steps=options.warmup + options.steps,
        per_device_train_batch_size=options.pairs // pieces,
        gradient_accumulation_steps=pieces,
        beta=0.1,
        train_sampling_strategy="sequential",
        learning_rate=options.learning_rate,
        **plain_trainer(options.device),
    )


def summary(arms: Arms) -> dict[str, Any]:
    """Ratios of the medians."""
    seconds = {arm: step_seconds(measured) for arm, measured in arms.items()}
    peaks = {arm: peak(measured) for arm, measured in arms.items()}
    faster = [min(seconds[whole], seconds[pieces]) for whole, pieces in ((OURS, OUR_PIECES), (WHOLE, PIECES))]
    leaner = [min(peaks[whole], peaks[pieces]) for whole, pieces in ((OURS, OUR_PIECES), (WHOLE, PIECES))]
    return {
        "ratio": round(faster[1] / faster[0], 3),
        "memory_ratio": round(leaner[0] / leaner[1], 3),
        "seconds_per_step": {arm: round(value, 3) for arm, value in seconds.items()},
        "peak_mib": {arm: round(value / MIB, 1) for arm, value in peaks.items()},
    }


def comparison(pairs: int, numbers: dict[str, Any], arms: Sequence[str]) -> Table:
    """Seconds a step, pairs a second, memory."""
    table = Table("", "s/step", "pairs/s", "peak MiB", title=f"SmolLM2-135M, {pairs} pairs")
    for arm in arms:
        seconds = numbers["seconds_per_step"][arm]
        table.add_row(arm, f"{seconds:.3g}", f"{pairs / seconds:.2f}", f"{numbers['peak_mib'][arm]:.0f}")
    return table


def main(options: Options) -> None:
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit ends the measurement's process, too
    with TemporaryDirectory() as folder:
        setting = Setting(arm=OURS, folder=folder, options=options)
        apart(save_model, setting)
        every = (OURS, WHOLE, OUR_PIECES, PIECES)
        arms = alternate(measure, {arm: replace(setting, arm=arm) for arm in every}, options.repeats)
    numbers = summary(arms)
    Console().print(comparison(options.pairs, numbers, list(arms)))
    print(json.dumps({"benchmark": "dpo_vs_trl", **numbers, "options": asdict(options)}))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
