"""The table of claims: a line for each result, filled in between the markers and nowhere else."""

import json

import pytest

from policyopt.reports.claims import BEGIN, END, claims_table, write_claims, write_verdicts


@pytest.fixture
def results(tmp_path):
    gate = {"name": "accuracy: bnpo − grpo > 0", "required": True, "estimate": 0.12345, "low": 0.05, "high": None}
    record = {"slug": "bnpo", "paper": "2506.02864", "claim": "better | than\nGRPO", "verdict": "not reproduced"}
    record |= {"gates": [{**gate, "name": "reported", "required": False}, gate], "seeds": [0, 1, 2]}
    (tmp_path / "results" / "smoke").mkdir(parents=True)
    for slug in ("bnpo", "alpha", "smoke/never"):
        (tmp_path / "results" / f"{slug}.json").write_text(json.dumps(record | {"slug": slug}))
    (tmp_path / "results" / "compare-language.json").write_text('{"entries": []}')  # no study
    return tmp_path / "results"


def test_a_line_for_each_result_in_order(results):
    lines = claims_table(results).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["`alpha`", "`bnpo`"]
    assert lines[3] == (
        "| `bnpo` | [2506.02864](https://arxiv.org/abs/2506.02864) | better \\| than GRPO | not reproduced | "
        "accuracy: bnpo − grpo > 0: 0.123 [0.05, –] | 3 | [figure](../results/bnpo.svg) |"
    )


def test_only_what_stands_between_the_markers_changes(results, tmp_path):
    page = tmp_path / "claims.md"
    page.write_text(f"# Claims\n\n{BEGIN}\nold\n{END}\n\nend\n")
    write_claims(results, page)
    write_claims(results, page)
    assert page.read_text() == f"# Claims\n\n{BEGIN}\n{claims_table(results)}{END}\n\nend\n"


def test_a_page_without_markers_is_an_error(results, tmp_path):
    page = tmp_path / "claims.md"
    page.write_text("# Claims\n")
    with pytest.raises(ValueError, match="no place for the table"):
        write_claims(results, page)
    assert page.read_text() == "# Claims\n"


def test_a_method_page_gets_its_verdict_once(results, tmp_path):
    record = json.loads((results / "bnpo.json").read_text())
    gates = [{**gate, "passed": passed} for gate, passed in zip(record["gates"], (False, None), strict=True)]
    record |= {"gates": gates, "budget": "60 updates", "tuning": "three tries"}
    (results / "bnpo.json").write_text(json.dumps(record))
    (results / "alpha.json").unlink()
    page = tmp_path / "bnpo.md"
    page.write_text("# BNPO\n\n<!-- claim:bnpo -->\n\nafter\n")
    assert write_verdicts(results, tmp_path) == [page]
    once = page.read_text()
    assert write_verdicts(results, tmp_path) == [page]
    assert page.read_text() == once
    assert once.startswith("# BNPO\n\n<!-- claim:bnpo -->\n**Verdict: not reproduced** over 3 seeds.")
    assert "| reported | 0.123 [0.05, –] | no | failed |" in once
    assert "| accuracy: bnpo − grpo > 0 | 0.123 [0.05, –] | yes | undecided |" in once
    assert once.endswith("\n\nafter\n")
