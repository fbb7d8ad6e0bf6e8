"""The command line. Each command is a small dataclass, from which tyro makes parser and help; work is imported late."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from tyro.conf import Positional, UseAppendAction, arg

console = Console()


@dataclass
class Train:
    """Train a method.

    $ policyopt train grpo                                              the shipped model on the shipped problem
    $ policyopt train grpo --problem arithmetic:terms=6 --budget 2M-tokens --seed 3
    $ policyopt train grpo --policy smollm2 --problem reasoning-gym:chain_sum --warm-start 20
    $ policyopt train grpo --policy ./model --problem dataset:train.jsonl --reward rewards.py:exact_match --lora 16
    $ policyopt train grpo --set optimizer.learning_rate=3e-4 --set "objective.aggregation=TokenMean"
    $ policyopt train --config runs/…/config.yaml                       repeats a run
    $ policyopt train --resume runs/…                                   goes on with one
    """

    method: Positional[str | None] = None
    """A slug, or slug:variant; `policyopt methods` lists them."""
    problem: str = "arithmetic"
    """arithmetic[:options], reasoning-gym:NAME[?options], dataset:FILE-OR-ID[?options], gym:ID, minari:ID-OR-FOLDER,
    lot-sizing[:options] …, or your own: FILE.py:FUNCTION-OR-CLASS that makes a problem."""
    policy: str = "tiny"
    """tiny (shipped), fresh[:layers=2,width=64], smollm2, or a path or hub id of a causal language model."""
    budget: str = "100-updates"
    """What the run may spend: N-tokens, N-updates, N-env-steps, N-seconds; k, M, G as suffixes; several with commas."""
    seed: int = 0
    set: Annotated[UseAppendAction[tuple[tuple[str, ...], ...]], arg(metavar="FIELD=VALUE")] = ()
    """Hyperparameters and parts, by the names that `policyopt methods SLUG` shows."""
    sampling: str | None = None
    """Offline methods: how rows are drawn: uniform, return-weighted, advantage-weighted, top-fraction."""
    reward: str | None = None
    """Reward functions for dataset:…, file.py:function or module:function, with weights: a.py:f=1.0,a.py:g=0.1."""
    test: str | None = None
    """Held-out rows for dataset:…; a share of the training file where there is none."""
    warm_start: int = 0
    """Imitate the problem's demonstrations for so many updates first."""
    lora: int | None = None
    """Train a low-rank adapter of this rank instead of all weights."""
    micro_batch: int | None = None
    """Tokens through the network at once: bounds memory, does not change the result; chosen by itself otherwise."""
    dtype: str = "float32"
    device: str | None = None
    """cpu or cuda; cuda where there is one."""
    threads: int | None = None
    compile: bool = False
    """On-policy methods on control: updates as compiled code, some seconds of waiting and then 1.4 to 1.5 times the steps a
    second. Needs a C++ compiler; without one, or where an update can't be compiled, a warning says so."""
    evaluations: int = 20
    """Held-out evaluations over the whole run."""
    out: Path | None = None
    """The run folder; runs/<method>-<problem>-<seed>-<time> by default."""
    config: Path | None = None
    """Repeat the run of this config.yaml."""
    resume: Path | None = None
    """Go on with the run in this folder."""
    tracker: tuple[str, ...] = ()
    """tensorboard."""

    def __call__(self) -> None:
        from policyopt import api

        if self.resume is not None:
            folder, settings = self.resume, api.read_config(self.resume)
        else:
            settings = api.read_config(self.config) if self.config is not None else self._settings(api.Settings)
            folder = api._folder(settings, self.out)
        result = api.train_from(settings, folder, resume=self.resume is not None, trackers=self.tracker)
        _finish(result, folder)

    def _settings(self, kind: Any) -> Any:
        if self.method is None:
            raise ValueError("which method? For example: policyopt train grpo (`policyopt methods` lists them)")
        pairs = [item.partition("=") for items in self.set for item in items]
        for path, equals, _ in pairs:
            if not equals:
                raise ValueError(f"--set needs FIELD=VALUE, got {path!r}")
        names = [f for f in kind.__dataclass_fields__ if f not in ("overrides", "checkpoints")]
        return kind(**{n: getattr(self, n) for n in names}, overrides={path: text for path, _, text in pairs})


@dataclass
class Compare:
    """Train several methods under the same budget on the same seeds: table with intervals, learning curves, a page.

    $ policyopt compare grpo remax bnpo --seeds 5 --budget 1M-tokens
    """

    methods: Positional[tuple[str, ...]]
    problem: str = "arithmetic"
    policy: str = "tiny"
    seeds: int = 5
    budget: str = "100-updates"
    warm_start: int = 0
    out: Path | None = None
    """Where the runs, compare.json, compare.svg and compare.html go; a second call there only adds what is missing."""

    def __call__(self) -> None:
        from policyopt import api
        from policyopt.reports.compare import print_table

        if not self.methods:
            raise ValueError("which methods? For example: policyopt compare grpo rloo")
        entries = api.compare(
            self.methods,
            self.problem,
            self.policy,
            seeds=self.seeds,
            budget=self.budget,
            out=self.out,
            warm_start=self.warm_start,
        )
        print_table(console, entries)


@dataclass
class Reproduce:
    """Rerun a paper's central claim as an experiment, with a verdict.

    $ policyopt reproduce remax            every seed of the study
    $ policyopt reproduce remax --smoke    seconds; checks that the study runs, says nothing about the claim
    """

    slug: Positional[str]
    seeds: int | None = None
    """Only the first so many seeds."""
    smoke: bool = False
    jobs: int = 1
    """Runs side by side."""
    out: Path = Path("results")

    def __call__(self) -> None:
        from policyopt import api

        api.reproduce(self.slug, seeds=self.seeds, smoke=self.smoke, jobs=self.jobs, out=self.out)


@dataclass
class Evaluate:
    """Evaluate what a run learned: on held-out problems, or with --fitted-q by logged data alone.

    $ policyopt evaluate runs/… --pass-at 1,8
    $ policyopt evaluate runs/… --fitted-q --data minari:data/mixed --horizon 200     nothing is played
    """

    run: Positional[Path]
    pass_at: str = ""
    """For example 1,8: the chance that one of k samples is right."""
    seed: int = 0
    best: bool = False
    """The best checkpoint by evaluation instead of the last one."""
    fitted_q: bool = False
    """Fitted Q evaluation: the policy's value from a data set, with an interval; the environment isn't touched."""
    data: str | None = None
    """--fitted-q: the data set, such as minari:FOLDER; the run's own where none is named."""
    gamma: float = 0.99
    """--fitted-q: the discount."""
    horizon: int | None = None
    """--fitted-q: the undiscounted return of episodes of at most so many steps, instead of the discounted value."""
    samples: int = 0
    """--fitted-q: actions drawn from the policy in each state; 0: the greedy one."""
    updates: int = 5000
    """--fitted-q: updates of the ensemble."""

    def __call__(self) -> None:
        from policyopt import api

        if self.fitted_q and not self.pass_at:
            self._fitted_q()
            return
        if self.fitted_q or self.data is not None:
            raise ValueError(
                "--fitted-q goes with --data, and not with --pass-at: say which of the two evaluations it is"
            )
        wanted = [k.strip() for k in self.pass_at.split(",") if k.strip()]
        if not all(k.isdigit() for k in wanted):
            raise ValueError(f"--pass-at needs numbers such as 1,8, got {self.pass_at!r}")
        ks = [int(k) for k in wanted]
        for name, value in api.evaluate(self.run, pass_at=ks, seed=self.seed, best=self.best).items():
            console.print(f"{name:24s} {value:.4f}")

    def _fitted_q(self) -> None:
        from rich.progress import Progress

        from policyopt import api

        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("fitting", total=self.updates)
            found = api.fitted_q(
                self.run,
                self.data,
                gamma=self.gamma,
                horizon=self.horizon,
                samples=self.samples,
                updates=self.updates,
                seed=self.seed,
                best=self.best,
                progress=lambda done: bar.advance(task, done),
            )
        what = f"discounted by {self.gamma:g}" if self.horizon is None else f"of at most {self.horizon} steps"
        console.print(f"return {what}: {found.value:.4f} [{found.low:.4f}, {found.high:.4f}]", markup=False)
        console.print(f"states in which it acts outside the data: {found.outside:.1%}")
        if found.warning is not None:
            console.print(found.warning, style="yellow", markup=False)


@dataclass
class Sample:
    """Show what a run's policy answers.

    $ policyopt sample runs/… "3+4*2="
    """

    run: Positional[Path]
    prompts: Positional[tuple[str, ...]]
    samples: int = 1
    greedy: bool = False
    seed: int = 0

    def __call__(self) -> None:
        from policyopt import api

        answers = api.sample(self.run, self.prompts, samples=self.samples, greedy=self.greedy, seed=self.seed)
        for prompt, texts in zip(self.prompts, answers, strict=True):
            for text in texts:
                console.print(f"{prompt} → {text}", markup=False)


@dataclass
class Methods:
    """The methods by family with the state of their claims; with a slug, one method: its parts and hyperparameters."""

    slug: Positional[str | None] = None
    results: Path = Path("results")

    def __call__(self) -> None:
        from policyopt.reports import terminal

        if self.slug is None:
            console.print(terminal.methods_table(self.results))
        else:
            terminal.show_method(console, self.slug, self.results)


@dataclass
class Diff:
    """The parts and hyperparameters in which two methods differ."""

    first: Positional[str]
    second: Positional[str]

    def __call__(self) -> None:
        from policyopt.reports import terminal

        console.print(terminal.difference_table(self.first, self.second))


@dataclass
class Report:
    """Write a run's page (report.html, curve.svg) anew, or with --claims the table of verdicts in docs/claims.md.

    $ policyopt report runs/…                            one run's page
    $ policyopt report --entropy-law runs/a runs/b       what their scores bought with entropy: R = -a exp(H) + b
    """

    run: Positional[Path | None] = None
    claims: bool = False
    entropy_law: Annotated[tuple[Path, ...], arg(metavar="RUN")] = ()
    """Runs whose evaluations the law is fitted to; the figure is entropy-law.svg in the first one's folder."""
    results: Path = Path("results")
    page: Path = Path("docs/claims.md")

    def __call__(self) -> None:
        if self.claims:
            from policyopt.reports.claims import write_claims, write_verdicts

            write_claims(self.results, self.page)
            pages = write_verdicts(self.results, self.page.parent / "methods")
            console.print(f"wrote {self.page} and the verdicts on {len(pages)} pages")
        elif self.entropy_law:
            from policyopt.reports.entropy_law import write_entropy_law

            target = self.entropy_law[0] / "entropy-law.svg"
            table, _ = write_entropy_law(self.entropy_law, target)
            console.print(table)
            console.print(f"wrote {target}", highlight=False)
        elif self.run is not None:
            from policyopt.reports.run import write_run_report

            console.print(f"wrote {write_run_report(self.run)}")
        else:
            raise ValueError("which run? policyopt report runs/…, or policyopt report --claims")


@dataclass
class Log:
    """Write a data set by playing: random actions, your runs' policies, or a mixture. Read it as minari:FOLDER.

    $ policyopt log --problem gym:Pendulum-v1 --steps 20000 --mix random=1 --out data/random
    $ policyopt log --problem gym:Pendulum-v1 --policy runs/… --mix random=0.95,expert=0.05 --out data/mixed
    $ policyopt log --problem gym:Pendulum-v1 --medium runs/… --mix medium-replay=1 --out data/replay
    """

    out: Path
    """The new data set's folder."""
    problem: str
    """The control problem to play, such as gym:Pendulum-v1."""
    policy: Path | None = None
    """The run folder of the expert."""
    medium: Path | None = None
    """The run folder of a policy half as good: a run that was stopped early."""
    steps: int = 10_000
    mix: str = "expert=1"
    """Shares of random, medium, medium-replay (what the medium run remembers) and expert, of sum 1; one alone needs none."""
    seed: int = 0

    def __call__(self) -> None:
        from rich.progress import Progress

        from policyopt import api

        pairs = [piece.partition("=") for piece in self.mix.split(",")]
        try:
            mix = {name.strip(): float(share) if equals else 1.0 for name, equals, share in pairs}
        except ValueError:
            raise ValueError(f"cannot read --mix {self.mix!r}: write random=0.9,expert=0.1") from None
        with Progress(console=console) as bar:
            task = bar.add_task("playing", total=self.steps)
            api.log(
                self.problem,
                self.out,
                policy=self.policy,
                medium=self.medium,
                steps=self.steps,
                mix=mix,
                seed=self.seed,
                progress=lambda moved: bar.advance(task, moved),
            )
        console.print(f"next: policyopt inspect {self.out}", highlight=False)


@dataclass
class Inspect:
    """What a data set lets expect before anyone trains: returns, trajectory quality (TQ), coverage (SACo), a figure.

    $ policyopt inspect data/mixed --random-return -1200 --best-return -150 --reference data/replay
    """

    dataset: Positional[str]
    """A Minari id, or a folder."""
    reference: str | None = None
    """The online learner's replay, of the same size: coverage is relative to it."""
    random_return: float = float("nan")
    """The mean return of random actions."""
    best_return: float = float("nan")
    """The best return known."""
    figure: Path = Path("dataset.svg")
    """Where the histogram of returns goes."""

    def __call__(self) -> None:
        from policyopt import api
        from policyopt.reports.dataset import figure, table

        found = api.inspect(
            self.dataset.removeprefix("minari:"),
            reference=self.reference,
            random_return=self.random_return,
            best_return=self.best_return,
        )
        console.print(table(found, self.dataset))
        console.print(f"wrote {figure(found, self.figure)}", highlight=False)


COMMANDS: dict[str, Callable[..., Any]] = {
    "train": Train,
    "compare": Compare,
    "reproduce": Reproduce,
    "evaluate": Evaluate,
    "sample": Sample,
    "log": Log,
    "inspect": Inspect,
    "methods": Methods,
    "diff": Diff,
    "report": Report,
}


def _finish(result: Any, folder: Path) -> None:
    from policyopt.reports.terminal import run_table

    console.print(run_table(result.rows))
    kept = ", ".join(sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")))
    console.print(f"[bold]{folder}[/]: {kept}", highlight=False)
    if (folder / "policy").exists():
        console.print(f"next: policyopt evaluate {folder} --pass-at 1,8", highlight=False)
    console.print(f"look at {folder / 'report.html'}", highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: 0 when all went well, 1 with a message for what the user can mend, 130 after Ctrl-C."""
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="policyopt",
        description="Published policy-optimization methods on one core; each one's claim is an experiment.",
        args=arguments,
    )
    try:
        command()
    except KeyboardInterrupt as stop:
        Console(stderr=True).print(str(stop) or "stopped", markup=False)
        return 130
    except (ValueError, ArithmeticError, OSError) as error:
        Console(stderr=True).print(f"policyopt: {error}", style="red", markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
