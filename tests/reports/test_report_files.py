"""Files that are whole or absent: a full disk, a cut-off line."""

import json
import math
import resource

import pytest

from policyopt.reports.files import read_lines, write_atomically, write_json


def test_a_file_that_does_not_fit_leaves_the_old_one_and_says_so(tmp_path):
    path = tmp_path / "result.json"
    write_atomically(path, "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="untouched") as raised:
            write_atomically(path, "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(path) in str(raised.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_that_json_cannot_say_are_null(tmp_path):
    write_json(tmp_path / "a" / "b.json", {"x": [1.5, math.nan], "y": {"z": (math.inf, "é", None, True)}})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {
        "x": [1.5, None],
        "y": {"z": [None, "é", None, True]},
    }


def test_a_last_line_that_was_cut_off_is_dropped_and_damage_before_it_is_not(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert read_lines(path) == []
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    assert read_lines(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(ValueError, match="damaged"):
        read_lines(path)
