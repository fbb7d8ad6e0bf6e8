"""DPO steps of policyopt and of TRL's DPOTrainer, side by side: pairs a second and peak memory.

Same on both sides: weights (one saved folder), pairs in the same order, loss (sigmoid, β = 0.1), reference (the initial
weights, its log-probabilities computed in every step: one pass over fresh pairs), learning rate, AdamW, clipping, dtype, threads,
one update a batch. Prompts have 30 to 60 words and responses 10 to 40, drawn from a fixed vocabulary of common words. TRL runs
in two settings:

    TRL           the whole batch in one forward
    TRL, pieces   one pair at a time, gradients accumulated: what it offers against a high peak

Speed is compared with TRL's faster setting, memory with its leaner one. Every measurement has a process of its own; the arms
alternate. Memory is what training adds to the loaded model: resident memory on the CPU, allocated memory on a GPU.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from side_by_side import MIB, Arms, Measured, Meter, alternate, apart, peak, step_seconds

OURS, WHOLE, PIECES = "policyopt", "TRL", "TRL, pieces"
WORDS = [
    "time",
    "person",
    "year",
    "way",
    "day",
    "thing",
    "man",
    "world",
    "life",
    "hand",
    "part",
    "child",
    "eye",
    "woman",
    "place",
    "work",
    "week",
    "case",
    "point",
    "company",
    "number",
    "group",
    "problem",
    "fact",
    "good",
    "new",
    "first",
    "last",
    "long",
    "great",
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = 2
    pairs: int = 8
    learning_rate: float = 1e-6
    warmup: int = 1  # steps that are not counted
    steps: int = 3  # steps that are
    repeats: int = 1


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One measurement, for a process of its own."""

    arm: str
    folder: str
    options: Options


def rows(options: Options) -> list[dict[str, str]]:
    """The pairs of all steps."""
    rng = Random(0)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    count = options.pairs * (options.warmup + options.steps)
    return [{"prompt": text(30, 60) + "\n", "chosen": text(10, 40), "rejected": text(10, 40)} for _ in range(count)]


def save_model(setting: Setting) -> bool:
    """Write the weights that all arms load."""
    from policyopt.models.load import load_policy

    load_policy("smollm2", device="cpu").save(Path(setting.folder))
    return True


def measure(setting: Setting) -> Measured:
    import torch

    torch.set_num_threads(setting.options.threads)
    return (measure_ours if setting.arm == OURS else measure_trl)(setting)


def measure_ours(setting: Setting) -> Measured:
    from policyopt.learners.annotators import Reference
    from policyopt.learners.update import Adam
    from policyopt.methods import dpo
    from policyopt.models.load import load_policy
    from policyopt.problems.language.preferences import PreferenceProblem, normalized
    from policyopt.rollouts.preferences import Rankings

    options = setting.options
    policy = load_policy(setting.folder, dtype=options.dtype, device=options.device)
    data = normalized(rows(options), "pairs")
    problem = PreferenceProblem(name="pairs", train=data, test=[{**data[0], "prompt": "held out"}], max_new_tokens=256)
    method = replace(
        dpo.method(),
        collector=Rankings(prompts=options.pairs, held_out_prompts=0),
        annotators=(Reference(),),
        optimizer=Adam(learning_rate=options.learning_rate),
    )
    meter = Meter(options.device)
    learner = method.learner(problem, policy, seed=0)
    meter.stamp()
    for _ in range(options.warmup + options.steps):
        float(learner.step()["loss/policy"])
        meter.stamp()
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

    meter = Meter(options.device)
    trainer = DPOTrainer(
        model=model,
        args=trl_settings(setting),
        train_dataset=Dataset.from_list(rows(options)),
        processing_class=tokenizer,
        callbacks=[Stamps()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
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
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        weight_decay=0.0,
        gradient_checkpointing=False,
        bf16=False,
        fp16=False,
        use_cpu=options.device == "cpu",
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        seed=0,
    )


def summary(arms: Arms) -> dict[str, Any]:
    """Ratios of the medians."""
    seconds = {arm: step_seconds(measured) for arm, measured in arms.items()}
    peaks = {arm: peak(measured) for arm, measured in arms.items()}
    return {
        "ratio": round(min(seconds[WHOLE], seconds[PIECES]) / seconds[OURS], 3),
        "memory_ratio": round(peaks[OURS] / min(peaks[WHOLE], peaks[PIECES]), 3),
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
        arms = alternate(measure, {arm: replace(setting, arm=arm) for arm in (OURS, WHOLE, PIECES)}, options.repeats)
    numbers = summary(arms)
    Console().print(comparison(options.pairs, numbers, list(arms)))
    print(json.dumps({"benchmark": "dpo_vs_trl", **numbers, "options": asdict(options)}))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
