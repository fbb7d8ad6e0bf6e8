"""Every study runs: a smoke run of two seeds reports what its gates ask, and gives no verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from policyopt import registry
from policyopt.studies.claim import run

ELSEWHERE = (
    "bnpo",
    "c-morl",
    "cot2",
    "dsrl",
    "moe-lrc",
    "remax",
    "stepmix",
    "bq-nco",
)  # slower, with tests of their own


@pytest.mark.parametrize("slug", [slug for slug in registry.studies() if slug not in ELSEWHERE])
def test_a_smoke_run(slug: str, tmp_path: Path) -> None:
    claim = registry.study(slug)
    result = run(claim, smoke=True, seeds=list(claim.seeds)[:1], out=tmp_path, progress=False)
    assert result.verdict is None and not result.errors
    assert claim.slug == slug and claim.tuning and claim.budget


def test_scored_seeds_are_not_those_that_were_tuned_on() -> None:
    for slug in registry.studies():
        assert max(registry.study(slug).seeds) < 100
