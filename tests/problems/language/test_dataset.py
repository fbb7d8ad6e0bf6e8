import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from policyopt.problems.language import dataset
from policyopt.problems.language.dataset import DatasetProblem
from policyopt.types import generator

ROWS = [{"prompt": f"{i}+1=", "answer": str(i + 1), "level": i % 3} for i in range(40)]
JUDGES = """
def correct(prompts, completions, answer, **columns):
    return [float(text == truth) for text, truth in zip(completions, answer)]
def short(completions):
    return [1.0 / len(text) for text in completions]
def spoken(prompts, completions, **columns):
    assert all(message["role"] for prompt in prompts for message in prompt)
    return [float(len(completion) == 1 and completion[0]["role"] == "assistant" and completion[0]["content"] == "yes")
            for completion in completions]
def broken(completions, level):
    return [1 / value for value in level]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("judges.py").write_text(JUDGES)
    write("train.jsonl", ROWS)
    return tmp_path


def write(name: str, rows: list[Any]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def all_prompts(problem: DatasetProblem, split: str) -> list[Any]:
    return problem.prompts(range(problem.size(split)), split)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_all_formats_give_the_same_rows(suffix: str) -> None:
    import datasets

    data, path = datasets.Dataset.from_list(ROWS), f"rows.{suffix}"
    if suffix == "json":
        Path(path).write_text(json.dumps(ROWS))
    else:
        {"jsonl": data.to_json, "csv": data.to_csv, "parquet": data.to_parquet}[suffix](path)
    problem, reference = dataset.parse(path), dataset.parse("train.jsonl")
    for split in ("train", "test"):
        assert all_prompts(problem, split) == all_prompts(reference, split)
    assert problem.score([3], [f" {problem.train[3]['answer']} "])["reward"].tolist() == [1.0]


def test_a_file_that_changes_is_read_again() -> None:
    dataset.parse("train.jsonl")
    write("train.jsonl", [{"prompt": f"new {i}", "answer": "x"} for i in range(5)])
    assert all(prompt.startswith("new") for prompt in all_prompts(dataset.parse("train.jsonl"), "train"))


def test_the_split_is_by_prompt_and_does_not_depend_on_order_or_neighbours() -> None:
    doubled = write("doubled.jsonl", [*reversed(ROWS), *ROWS])
    one, two = dataset.parse("train.jsonl?held_out=0.3"), dataset.parse(f"{doubled}?held_out=0.3")
    assert set(all_prompts(one, "test")) == set(all_prompts(two, "test"))
    assert not set(all_prompts(two, "test")) & set(all_prompts(two, "train"))
    assert two.size("train") + two.size("test") == 80
    assert 4 <= one.size("test") <= 20  # 0.3 of 40, within three standard deviations
    many = write("many.jsonl", [{"prompt": str(i), "answer": "x"} for i in range(4000)])
    assert dataset.parse(many).size("test") == pytest.approx(400, abs=5 * 19)


@pytest.mark.parametrize("share", ["0.000001", "0.999999"])
def test_one_prompt_at_least_on_either_side(share: str) -> None:
    problem = dataset.parse(f"train.jsonl?held_out={share}")
    assert sorted((problem.size("train"), problem.size("test"))) == [1, 39]


def test_weighted_rewards_from_a_file() -> None:
    problem = dataset.parse("train.jsonl", rewards="judges.py:correct=2,judges.py:short=0.5")
    scores = problem.score([0, 1], [problem.train[0]["answer"], "long"])
    assert scores["correct"].tolist() == [1.0, 0.0]
    assert scores["short"][1].item() == 0.25
    assert torch.equal(scores["reward"], 2 * scores["correct"] + 0.5 * scores["short"])
    assert problem.metric == "correct"


def test_messages_go_to_reward_functions_as_messages() -> None:
    rows = [{"prompt": [{"role": "user", "content": f"say yes, {i}"}]} for i in range(5)]
    problem = dataset.parse(write("chat.jsonl", rows), rewards="judges.py:spoken")
    assert problem.prompts([0])[0] in [row["prompt"] for row in rows]
    assert problem.score([0, 0], ["yes", "no"])["reward"].tolist() == [1.0, 0.0]


def test_problems_travel_to_other_processes() -> None:
    problem = dataset.parse("train.jsonl", rewards="judges.py:correct")
    copy = pickle.loads(pickle.dumps(problem))
    assert copy == problem
    assert copy.score([0], [problem.train[0]["answer"]])["reward"].tolist() == [1.0]


def test_functions_of_the_caller_need_no_file() -> None:
    def loud(completions: list[str]) -> list[float]:
        return [float(text.isupper()) for text in completions]

    problem = DatasetProblem(name="loud", train=ROWS[:2], test=ROWS[2:], rewards={"loud": loud})
    assert problem.score([0, 1], ["YES", "no"])["reward"].tolist() == [1.0, 0.0]
    measured = problem.evaluate(lambda prompts, samples, greedy: [["A"]] * len(prompts), generator(0, "e"))
    assert measured == {"eval/accuracy": 1.0, "eval/loud": 1.0, "eval/reward": 1.0}
    with pytest.raises(ValueError, match="'reward' is the weighted sum"):
        DatasetProblem(name="x", train=ROWS[:2], test=ROWS[2:], rewards={"reward": loud})
    with pytest.raises(ValueError, match="'lowd' is not known; did you mean 'loud'"):
        DatasetProblem(name="x", train=ROWS[:2], test=ROWS[2:], rewards={"loud": loud}, reward_weights={"lowd": 1.0})


def test_demonstrations_and_preferences_come_from_columns() -> None:
    plain = DatasetProblem(name="x", train=ROWS[:2], test=ROWS[2:])
    assert plain.demonstrations([0, 1]) == ["1", "2"]
    with pytest.raises(ValueError, match="has no preferences"):
        plain.rankings([0])
    reply = [{"role": "assistant", "content": "good"}]
    rows = [{"prompt": str(i), "completion": reply, "answer": "x", "chosen": reply, "rejected": "bad"} for i in "ab"]
    full = DatasetProblem(name="x", train=rows[:1], test=rows[1:])
    assert full.demonstrations([0]) == ["good"]
    assert full.rankings([0], "test") == [(("good", "bad"), (1.0, 0.0))]
    bare = DatasetProblem(name="x", train=[{"prompt": "a"}], test=[{"prompt": "b"}])
    with pytest.raises(ValueError, match="has no demonstrations"):
        bare.demonstrations([0])
    hole = DatasetProblem(name="x", train=[{"prompt": "a", "answer": None}], test=[{"prompt": "b", "answer": "c"}])
    with pytest.raises(ValueError, match="'answer' of train row 1 is None"):
        hole.demonstrations([0])


def test_data_without_rewards_can_be_imitated_but_not_scored() -> None:
    rows = [{"prompt": str(i), "completion": "x"} for i in range(5)]
    problem = dataset.parse(write("imitate.jsonl", rows))
    assert problem.demonstrations([0]) == ["x"]
    assert problem.evaluate(lambda prompts, samples, greedy: [], generator(0, "e")) == {}
    with pytest.raises(ValueError, match="'imitate' has no reward function"):
        problem.score([0], ["x"])


def test_options_are_read() -> None:
    problem = dataset.parse("train.jsonl?max_new_tokens=9&evaluation_size=2&stop=\\n")
    assert (problem.name, problem.max_new_tokens, problem.evaluation_size, problem.stop) == ("train", 9, 2, ("\n",))


def test_a_test_file_replaces_the_split_and_its_prompts_leave_training() -> None:
    held = write("held.jsonl", [ROWS[3], {"prompt": "9+9=", "answer": "18", "level": 0}])
    with pytest.warns(UserWarning, match=r"1 of 40 rows of train.jsonl are left out"):
        problem = dataset.parse("train.jsonl", test=held)
    assert all_prompts(problem, "test") == ["3+1=", "9+9="]
    assert problem.size("train") == 39
    assert "3+1=" not in all_prompts(problem, "train")
    with pytest.raises(ValueError, match=r"every prompt of train.jsonl is also in the test data"):
        dataset.parse("train.jsonl", test="train.jsonl")


def test_a_reward_function_that_raises_is_named() -> None:
    rows = [{"prompt": str(i), "level": int(i != 2)} for i in range(4)]
    problem = DatasetProblem(name="x", train=rows, test=[{"prompt": "t"}], rewards={"broken": "judges.py:broken"})
    with pytest.raises(ValueError, match=r"'broken' raised ZeroDivisionError.* at row 1 .* 'b'") as caught:
        problem.score([0, 2, 3], ["a", "b", "c"])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


PROMPT = {"prompt": "a", "answer": "x"}
CHAT = {"prompt": [{"role": "user", "content": "a"}], "answer": "x"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"prompts": "a", "answer": "x"}],
            "no column 'prompt'; its columns are prompts, answer; did you mean 'prompts'",
        ),
        ([{"zzz": "a"}], "no column 'prompt'; its columns are zzz; rename"),
        ([PROMPT, {"prompt": 5, "answer": "x"}], r"the prompt of row 2 is '5' \(int\)"),
        ([PROMPT, {"prompt": None, "answer": "x"}], r"the prompt of row 2 is 'None'"),
        ([PROMPT, {"answer": "x"}], r"the prompt of row 2 is 'None'"),
        ([PROMPT, {"prompt": "", "answer": "x"}], r"the prompt of row 2 is ''"),
        ([PROMPT, CHAT], "the prompt of row 1 is a text and that of row 2 messages"),
        ([CHAT, PROMPT], "the prompt of row 1 is messages and that of row 2 a text"),
        ([{"prompt": [], "answer": "x"}], r"the prompt of row 1 is '\[\]'"),
        ([{"prompt": [{"role": "user"}], "answer": "x"}], r"expected a text that is not empty, or a list of messages"),
        ([PROMPT, PROMPT], "one distinct prompt, so none can be held out"),
        (
            [{"prompt": "a", "label": 1}, {"prompt": "b", "label": 1}],
            "nothing says what a good response .* label; give",
        ),
        ([PROMPT, [1, 2]], "line 2 is not a JSON object"),
    ],
)
def test_bad_rows(rows: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataset.parse(write("bad.jsonl", rows))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.jsonl", '{"prompt": "a"}\n{"prompt": \n', "cannot read 'bad.jsonl': .*; line 2 is not JSON"),
        ("bad.jsonl", "", "bad.jsonl is empty"),
        ("bad.jsonl", " \n", "cannot read 'bad.jsonl'"),
        ("bad.json", "[]", "bad.json"),
        ("bad.json", "{", "cannot read 'bad.json'"),
        ("bad.csv", "prompt,answer\n", "bad.csv"),
        ("bad.csv", 'prompt,answer\n"a,3\n', "cannot read 'bad.csv': .*EOF inside string"),
        ("bad.csv", "prompt,answer\na,1\n,2\n", "bad.csv: the prompt of row 2"),
        ("bad.parquet", "not parquet", "cannot read 'bad.parquet': .*Parquet magic bytes"),
        ("bad.txt", "hello", r"cannot tell the format of 'bad.txt'; expected a name that ends in .jsonl, .json, .csv"),
    ],
)
def test_bad_files(name: str, content: str, message: str) -> None:
    Path(name).write_text(content)
    with pytest.raises(ValueError, match=message):
        dataset.parse(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "trian.jsonl"}, r"no file 'trian.jsonl'; \. has train.jsonl"),
        ({"text": "train.jsonl?held_out=1.0"}, "held_out=1.0 is not possible"),
        ({"text": "train.jsonl?heldout=0.1"}, "option 'heldout' is not known; did you mean 'held_out'"),
        ({"text": "train.jsonl", "test": "tset.jsonl"}, "no file 'tset.jsonl'"),
        ({"text": "train.jsonl", "rewards": "judge.py:correct"}, "no file 'judge.py' for a reward function"),
        ({"text": "train.jsonl", "rewards": "judges.py:corect"}, "did you mean 'correct'"),
        ({"text": "train.jsonl", "rewards": "judges.py:correct=one"}, "cannot read the weight"),
    ],
)
def test_bad_arguments_are_refused_before_work_starts(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataset.parse(**arguments)


def test_a_reward_function_that_asks_for_another_column() -> None:
    write("other.jsonl", [{"prompt": str(i), "answers": "x"} for i in range(4)])
    with pytest.raises(ValueError, match="'correct' asks for a column; the column 'answer' is not known; did you mean"):
        dataset.parse("other.jsonl", rewards="judges.py:correct")


def test_the_hub_is_asked_with_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(path: str, name: str | None, split: str) -> datasets.Dataset:
        asked.append((path, name, split))
        return datasets.Dataset.from_list(ROWS[:30] if split == "train" else ROWS[30:])

    monkeypatch.setattr(datasets, "load_dataset", load)
    problem = dataset.parse("some/sums?config=main", test="some/sums")
    assert asked == [("some/sums", "main", "train"), ("some/sums", "main", "test")]
    assert (problem.name, problem.size("train"), problem.size("test")) == ("sums", 30, 10)

    def refuse(path: str, name: str | None, split: str) -> datasets.Dataset:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ValueError, match=r"cannot read 'some/sums': .*no network.*no such local path either") as caught:
        dataset.parse("some/sums")
    assert isinstance(caught.value.__cause__, ConnectionError)
