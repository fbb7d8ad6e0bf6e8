import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policyopt.problems.language.rewards import call, check_arguments, exact_match, load_function, parse_rewards


def run(function: Callable[..., Any], rows: int = 3, **columns: Any) -> list[float]:
    prompts, completions = [f"p{i}" for i in range(rows)], [f"c{i}" for i in range(rows)]
    return call("judge", function, prompts, completions, columns).tolist()


def test_the_arguments_are_trls() -> None:
    def judge(prompts: list[str], completions: list[str], answer: list[int], **columns: Any) -> list[float]:
        assert (prompts, completions) == (["p0", "p1", "p2"], ["c0", "c1", "c2"])
        assert columns == {"level": [7, 8, 9]}
        return [float(value) for value in answer]

    assert run(judge, answer=[1, 2, 3], level=[7, 8, 9]) == [1.0, 2.0, 3.0]


def test_a_function_without_keywords_gets_what_it_takes() -> None:
    assert run(lambda completions: [len(text) for text in completions], answer=[1, 2, 3]) == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    "returned",
    [[1, 0.5, True], (1.0, 0.5, 1), torch.tensor([1.0, 0.5, 1.0]), np.array([1.0, 0.5, 1.0]), [np.float32(1), 0.5, 1]],
)
def test_what_counts_as_a_list_of_numbers(returned: Any) -> None:
    assert run(lambda completions: returned) == [1.0, 0.5, 1.0]


def test_none_adds_nothing() -> None:
    assert run(lambda completions: [None, 2.0, None]) == [0.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0, math.nan, 1.0], "'judge' returned nan for row 1"),
        ([1.0, 1.0, math.inf], "'judge' returned inf for row 2"),
        (["1.0", 1.0, 1.0], "'judge' returned '1.0' for row 0"),
        ([1.0, [1.0], 1.0], r"'judge' returned \[1.0\] for row 1"),
        ([1.0, 1j, 1.0], "'judge' returned 1j for row 1"),
        ([1.0, 1.0], "a list of 3 numbers, one a response; got 2 values"),
        ([], "got 0 values"),
        (1.0, "got 1.0"),
        (None, "got None"),
        ("abc", "got 'abc'"),
        (torch.ones(2), "got 2 values"),
        (torch.tensor(1.0), "got 1.0"),
        (torch.ones(3, 1), r"returned \[1.0\] for row 0"),
        ({"a": 1, "b": 2, "c": 3}, "got {'a': 1"),
    ],
)
def test_returns_that_are_no_list_of_finite_numbers(returned: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(lambda completions: returned)


def test_a_function_that_raises_is_named_with_its_row_and_cause() -> None:
    def judge(completions: list[str]) -> list[float]:
        return [1.0 / (text != "c1") for text in completions]

    with pytest.raises(ValueError, match=r"'judge' raised ZeroDivisionError.* at row 1 .* 'c1'") as caught:
        run(judge)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_function_that_raises_for_the_batch_alone_names_no_row() -> None:
    def judge(completions: list[str]) -> list[float]:
        if len(completions) > 1:
            raise RuntimeError("too many")
        return [0.0]

    with pytest.raises(ValueError, match=r"'judge' raised RuntimeError\('too many'\)$"):
        run(judge)


def test_exact_match_reads_texts_and_messages() -> None:
    assert exact_match([" 7\n", "8"], answer=[7, "7"]) == [1.0, 0.0]
    assert exact_match([[{"role": "assistant", "content": "7"}]], answer=["7 "]) == [1.0]


def test_weights_are_read() -> None:
    sources, weights = parse_rewards("rewards.py:correct=1.5, rewards.py:short=-0.1,exact_match,a/b.py:reward")
    assert sources == {
        "correct": "rewards.py:correct",
        "short": "rewards.py:short",
        "exact_match": "exact_match",
        "b_reward": "a/b.py:reward",
    }
    assert weights == {"correct": 1.5, "short": -0.1, "exact_match": 1.0, "b_reward": 1.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.py:f=x", "cannot read the weight in 'a.py:f=x'"),
        ("a.py:f=nan", "cannot read the weight"),
        ("a.py:f,b.py:f", "two reward functions are called 'f'"),
        (" , ", "no reward function in"),
    ],
)
def test_bad_reward_texts(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_rewards(text)


def test_functions_are_found_in_files_and_modules(tmp_path: Path) -> None:
    (tmp_path / "judges.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass\nclass Scale:\n    by: float\n"
        "def correct(completions, **columns):\n    return [Scale(2.0).by for _ in completions]\n"
    )
    assert load_function(f"{tmp_path}/judges.py:correct")(["a"]) == [2.0]
    assert load_function("math:fsum") is math.fsum
    assert load_function("exact_match") is exact_match


def test_a_relative_path_is_read_from_the_present_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (1.0, 2.0):
        (tmp_path / str(value)).mkdir()
        monkeypatch.chdir(tmp_path / str(value))
        Path("judges.py").write_text(f"def correct(completions):\n    return [{value}]\n")
        assert load_function("judges.py:correct")(["a"]) == [value]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{folder}/judge.py:correct", r"no file '.*judge.py' for a reward function; .* has broken.py, judges.py"),
        ("{folder}/judges.py:corect", "'corect' is not known; did you mean 'correct'"),
        ("{folder}/judges.py:", "'' is not known; there are correct"),
        ("{folder}/judges.py:LIMIT", "'LIMIT' is not known; there are correct"),
        ("{folder}/broken.py:f", "broken.py' fails on import: ModuleNotFoundError"),
        ("no_such_module:f", "cannot import the module 'no_such_module'"),
        ("math:fsun", "'fsun' is not known; did you mean 'fsum'"),
        ("exact_mach", "'exact_mach' is not known; did you mean 'exact_match'"),
    ],
)
def test_functions_that_cannot_be_found(source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "judges.py").write_text("LIMIT = 3\ndef correct(completions):\n    return [0.0]\n")
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    before = set(sys.modules)
    with pytest.raises(ValueError, match=message):
        load_function(source.format(folder=tmp_path))
    assert not {name for name in set(sys.modules) - before if "broken" in name}


def test_a_required_column_that_is_not_there() -> None:
    def judge(completions: list[str], answr: list[str], level: int = 0, **columns: Any) -> list[float]:
        return [0.0]

    check_arguments("judge", judge, ["answr"])
    with pytest.raises(
        ValueError, match="'judge' asks for a column; the column 'answr' is not known; did you mean 'ans"
    ):
        check_arguments("judge", judge, ["answer"])
