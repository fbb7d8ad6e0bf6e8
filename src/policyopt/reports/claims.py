"""The table of claims in the documentation, made from ``results/*.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policyopt.reports.files import write_atomically

BEGIN, END = "<!-- claims: begin -->", "<!-- claims: end -->"


def claims_table(results_dir: Path, figures: str = "../results") -> str:
    """Markdown, a line for each study in ``results_dir``: slug, paper, claim, verdict, effect, seeds and figure.

    ``figures`` is the way from the page to the figures. The effect is that of the first required gate, which is named.
    """
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results_dir.glob("*.json"))]
    lines = [_line(record, figures) for record in records]
    head = ["| method | paper | claim | verdict | effect | seeds | figure |", "|---|---|---|---|---|---|---|"]
    return "\n".join([*head, *lines]) + "\n"


def write_claims(results_dir: Path, page: Path) -> None:
    """Fill ``page`` between its two markers with the table of claims; ValueError where the markers are missing."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no place for the table: put the lines {BEGIN} and {END} where it should stand")
    write_atomically(page, f"{before}{BEGIN}\n{claims_table(results_dir)}{END}{after}")


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
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _effect(record: Mapping[str, Any]) -> str:
    gate = next(gate for gate in record["gates"] if gate["required"])
    estimate, low, high = (_number(gate[end]) for end in ("estimate", "low", "high"))
    interval = "" if gate["low"] == gate["high"] else f" [{low}, {high}]"
    return f"{gate['name']}: {estimate}{interval}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
