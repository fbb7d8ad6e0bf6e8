"""Tables for the terminal: the list of methods, one method, two methods side by side, a run's result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from policyopt import registry
from policyopt.training.config import describe, difference, flat

SHOWN = ("eval/accuracy", "eval/return", "reward/mean", "policy/entropy", "response/length", "spent/tokens")


def verdict(slug: str, results: Path) -> str:
    """The state of a method's claim: its verdict, "not run" where there is a study, or a dash."""
    file = results / f"{slug}.json"
    if file.exists():
        return str(json.loads(file.read_text()).get("verdict"))
    return "not run" if slug in registry.studies() else "–"


def methods_table(results: Path) -> Table:
    """All methods, a section for each family."""
    table = Table(
        Column("method", no_wrap=True),
        Column("what it is", ratio=2),
        Column("variants", ratio=1),
        Column("claim", no_wrap=True),
    )
    entries = sorted(registry.methods().values(), key=lambda e: (e.family, e.slug))
    for family, members in groupby(entries, key=lambda e: e.family):
        table.add_section()
        table.add_row(f"[bold]{escape(family)}[/bold]")
        for entry in members:
            variants = ", ".join(entry.variants)
            table.add_row(entry.slug, escape(entry.title), variants, verdict(entry.slug, results))
    return table


def show_method(console: Console, slug: str, results: Path) -> None:
    """One method: what its file says, its parts and hyperparameters by the names that ``--set`` takes, its claim."""
    name = slug.partition(":")[0]
    known = registry.methods()
    if name not in known:
        raise registry.unknown("method", name, list(known))
    module = __import__(f"policyopt.methods.{name.replace('-', '_')}", fromlist=["__doc__"])
    console.print((module.__doc__ or "").strip(), markup=False, highlight=False)
    if known[name].kind == "method":
        table = Table("field", "value", title=slug)
        for path, value in flat(describe(registry.method(slug))):
            table.add_row(path, escape(str(value)))
        console.print(table)
    console.print(f"claim: {verdict(name, results)}")
    if name in registry.studies():
        console.print(f"rerun it: policyopt reproduce {name}", highlight=False)


def difference_table(first: str, second: str) -> Table:
    """Where two methods differ, field by field."""
    table = Table("field", first, second)
    for path, one, two in difference(registry.method(first), registry.method(second)):
        table.add_row(path, escape(str(one)), escape(str(two)))
    return table


def run_table(rows: Sequence[Mapping[str, float]]) -> Table:
    """The first, the best and the last value of what a run logged."""
    table = Table("", "first", "last", "least", "most")
    for name in SHOWN:
        values = [row[name] for row in rows if row.get(name) is not None]
        if values:
            cells = (values[0], values[-1], min(values), max(values))
            table.add_row(name, *(f"{value:.4g}" for value in cells))
    return table
