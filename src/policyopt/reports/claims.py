"""The claims in the documentation, made from ``results/*.json``: the table, and the verdict on each method's page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policyopt.reports.files import write_atomically

BEGIN, END = "<!-- claims: begin -->", "<!-- claims: end -->"
PAGE_END = "<!-- claim: end -->"


def claims_table(results_dir: Path, figures: str = "../results") -> str:
    """Markdown, a line for each study in ``results_dir``: slug, paper, claim, verdict, effect, seeds and figure.

    ``figures`` is the way from the page to the figures. The effect is that of the first required gate, which is named.
    """
    lines = [_line(record, figures) for record in verdicts(results_dir)]
    head = ["| method | paper | claim | verdict | effect | seeds | figure |", "|---|---|---|---|---|---|---|"]
    return "\n".join([*head, *lines]) + "\n"


def verdicts(results_dir: Path) -> list[dict[str, Any]]:
    """The records of the studies in ``results_dir``, by slug; comparisons and benchmarks that lie there have no verdict."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results_dir.glob("*.json"))]
    return [record for record in records if "verdict" in record]


def write_claims(results_dir: Path, page: Path) -> None:
    """Fill ``page`` between its two markers with the table of claims; ValueError where the markers are missing."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no place for the table: put the lines {BEGIN} and {END} where it should stand")
    write_atomically(page, f"{before}{BEGIN}\n{claims_table(results_dir)}{END}{after}")


def write_verdicts(results_dir: Path, pages: Path) -> list[Path]:
    """Write each result's verdict and gates into ``pages/<slug>.md``, between the line ``<!-- claim:<slug> -->`` and
    ``<!-- claim: end -->`` (put there at the first time); returns the pages written. Others are left alone."""
    written = []
    for record in verdicts(results_dir):
        page, marker = pages / f"{record['slug']}.md", f"<!-- claim:{record['slug']} -->"
        text = page.read_text(encoding="utf-8") if page.exists() else ""
        before, found, rest = text.partition(marker)
        if found:
            after = rest.partition(PAGE_END)[2] if PAGE_END in rest else rest
            write_atomically(page, f"{before}{marker}\n{verdict_text(record)}{PAGE_END}{after}")
            written.append(page)
    return written


def verdict_text(record: Mapping[str, Any]) -> str:
    """Markdown: the verdict, every gate with its interval and answer, the budget, the tuning, the figure."""
    answers = {True: "passed", False: "failed", None: "undecided"}
    gates = "".join(
        f"| {_cell(gate['name'])} | {_interval(gate)} | {'yes' if gate['required'] else 'no'} | {answers[gate['passed']]} |\n"
        for gate in record["gates"]
    )
    return (
        f"**Verdict: {record['verdict']}** over {len(record['seeds'])} seeds. Budget: {record['budget']}. "
        f"Settled beforehand: {record['tuning']}.\n\n"
        f"| gate | estimate [interval] | required | answer |\n|---|---|---|---|\n{gates}\n"
        f"![{record['slug']}](../../results/{record['slug']}.svg)\n"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _interval(gate: Mapping[str, Any]) -> str:
    estimate, low, high = (_number(gate[end]) for end in ("estimate", "low", "high"))
    return estimate if gate["low"] == gate["high"] else f"{estimate} [{low}, {high}]"


def _line(record: Mapping[str, Any], figures: str) -> str:
    slug, paper = record["slug"], record["paper"]
    cells = (
        f"`{slug}`",
        f"[{paper}](https://arxiv.org/abs/{paper})",
        record["claim"],
        record["verdict"],
        _effect(record),
        str(len(record["seeds"])),
        f"[figure]({figures}/{slug}.svg)",
    )
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _effect(record: Mapping[str, Any]) -> str:
    gate = next(gate for gate in record["gates"] if gate["required"])
    return f"{gate['name']}: {_interval(gate)}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
