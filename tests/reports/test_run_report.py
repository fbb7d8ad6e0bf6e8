"""A run's page: what was logged is shown, foreign text is escaped, nothing is fetched."""

import json
import re
import xml.etree.ElementTree as ET

import pytest

from policyopt.reports.run import curve_of, read_metrics, write_run_report

MALICIOUS = '<script>alert("x")</script><img src=x onerror=alert(1)>'


def write_run(folder, steps=6, samples=()):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"step": 0, "eval/accuracy": 0.0}]
    for step in range(1, steps + 1):
        row = {"step": step, "reward/mean": step / 10, "spent/tokens": 1000 * step, "time/step": 0.5, "<b>odd</b>": 1.0}
        rows.append(
            row | ({"eval/accuracy": step / 8} if step % 2 == 0 else {}) | {"policy/kl_k3": None, "note": "text"}
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(f"method: grpo\nname: {MALICIOUS}\n")
    (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return folder


def test_the_report_shows_what_was_logged_in_groups(tmp_path):
    page = write_run_report(write_run(tmp_path / "run")).read_text()
    headings = [
        name for name in ("Evaluation", "Reward", "Spent so far", "Time", "Other") if f"<h2>{name}</h2>" in page
    ]
    assert headings == ["Evaluation", "Reward", "Spent so far", "Time", "Other"]
    assert page.index("<h2>Evaluation</h2>") < page.index("<h2>Reward</h2>") < page.index("<h2>Time</h2>")
    assert "<h2>Policy</h2>" not in page  # policy/kl_k3 was null at every step
    assert "eval/accuracy: last 0.75" in page
    assert "time/step (seconds)" in page
    assert page.count("<svg") == 5


def test_foreign_text_is_escaped_everywhere(tmp_path):
    sample = {"step": 1, "prompt": MALICIOUS, "response": MALICIOUS, "reward": 0.25}
    page = write_run_report(write_run(tmp_path / "<i>run", samples=[sample])).read_text()
    assert "<script>" not in page
    assert "<img" not in page
    assert "<b>odd" not in page
    assert "<i>run" not in page
    assert page.count("&lt;script&gt;alert(&#34;x&#34;)") == 3


def test_nothing_is_fetched(tmp_path):
    page = write_run_report(write_run(tmp_path / "run")).read_text()
    assert re.search(r"<(script|link|img|iframe|image)\b|@import|url\((?!#)", page) is None


def test_samples_are_of_the_first_and_the_last_step(tmp_path):
    samples = [{"step": s, "prompt": "p", "response": f"answer {s}.{i}"} for s in (1, 3, 6) for i in range(9)]
    page = write_run_report(write_run(tmp_path / "run", samples=samples)).read_text()
    assert [f"answer {s}.0" in page for s in (1, 3, 6)] == [True, False, True]
    assert page.count("<article>") == 8


def test_the_curve_is_evaluation_over_tokens(tmp_path):
    write_run_report(write_run(tmp_path / "run"))
    curve = curve_of(read_metrics(tmp_path / "run"), "eval/accuracy", "spent/tokens")
    assert (curve.steps, curve.values) == ([0, 2000, 4000, 6000], [0, 0.25, 0.5, 0.75])
    drawing = (tmp_path / "run" / "curve.svg").read_text()
    ET.fromstring(drawing)
    assert "<!-- generated tokens -->" in drawing
    assert "<!-- eval/accuracy -->" in drawing


def test_a_run_that_was_killed_while_logging_still_reports_and_an_empty_one_says_so(tmp_path):
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "rew')
    assert "6 steps" in write_run_report(folder).read_text()
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match="no metrics yet"):
        write_run_report(folder)
