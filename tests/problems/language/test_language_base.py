from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import pytest
import torch

from policyopt.problems.language.base import LanguageProblem, choose, pass_at_k, read_options
from policyopt.types import Prompt, Scores, generator


@dataclass(frozen=True, kw_only=True)
class Echo(LanguageProblem):
    """Say the number: accuracy for the right one, short for a single character."""

    name: str = "echo"
    max_new_tokens: int = 4

    def size(self, split: str) -> int:
        return 40 if split == "train" else 12

    def prompts(self, ids: Sequence[int], split: str = "train") -> list[Prompt]:
        self.check(ids, split)
        return [str(index) for index in ids]

    def components(self, ids: Sequence[int], responses: Sequence[str], split: str = "train") -> Scores:
        right = [response == str(index) for index, response in zip(ids, responses, strict=True)]
        return {
            "accuracy": torch.tensor(right).float(),
            "short": torch.tensor([len(response) == 1 for response in responses]).float(),
        }


def test_reward_is_the_weighted_sum_of_components() -> None:
    problem = Echo(reward_weights={"accuracy": 2.0, "short": -0.5})
    scores = problem.score([3, 14, 5], ["3", "14", "66"])
    assert scores["reward"].tolist() == [1.5, 2.0, 0.0]
    assert scores["accuracy"].tolist() == [1.0, 1.0, 0.0]
    assert scores["reward"].dtype == torch.float32


def test_an_unknown_weight_names_the_nearest_component() -> None:
    with pytest.raises(ValueError, match="'acuracy' is not known; did you mean 'accuracy'"):
        Echo(reward_weights={"acuracy": 1.0}).score([1], ["1"])


def test_responses_must_match_ids() -> None:
    with pytest.raises(ValueError, match="got 1 responses to 2 prompts"):
        Echo().score([1, 2], ["1"])


@pytest.mark.parametrize(("size", "expected"), [(256, 10 / 12), (10, 1.0), (11, 10 / 11)])
def test_evaluation_takes_the_first_held_out_instances_once_each(size: int, expected: float) -> None:
    asked = []

    def act(prompts: list[Prompt], samples: int, greedy: bool) -> list[list[str]]:
        asked.append((len(prompts), samples, greedy))
        return [[str(prompt)[:1]] * samples for prompt in prompts]  # right for one-digit numbers alone

    measured = Echo(evaluation_size=size).evaluate(act, generator(0, "evaluate"))
    assert asked == [(min(size, 12), 1, False)]
    assert measured == pytest.approx({"eval/accuracy": expected, "eval/short": 1.0, "eval/reward": expected})


def test_evaluation_reports_the_metric_as_accuracy() -> None:
    problem = Echo(metric="short", reward_weights={"short": 1.0})
    with pytest.raises(ValueError, match="metric 'shrt'"):
        Echo(metric="shrt").evaluate(lambda prompts, samples, greedy: [["x"]] * len(prompts), generator(0, "e"))
    measured = problem.evaluate(lambda prompts, samples, greedy: [["xy"]] * len(prompts), generator(0, "e"))
    assert measured["eval/short"] == measured["eval/reward"] == 0.0


def test_demonstrations_are_refused_by_default() -> None:
    with pytest.raises(ValueError, match="'echo' has no demonstrations"):
        Echo().demonstrations([0])


def test_ids_and_splits_are_checked() -> None:
    with pytest.raises(ValueError, match="ids of the split 'test' are 0 to 11, got 3 to 12"):
        Echo().prompts([3, 12], "test")
    with pytest.raises(ValueError, match="split 'tset' is not known; did you mean 'test'"):
        Echo().prompts([3], "tset")


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_equals_the_average_over_all_subsets(k: int) -> None:
    correct = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]], dtype=torch.bool)
    subsets = list(combinations(range(5), k))
    average = sum(bool(row[list(subset)].any()) for row in correct for subset in subsets) / (4 * len(subsets))
    assert pass_at_k(correct, k) == pytest.approx(average)


@pytest.mark.parametrize("k", [0, 4])
def test_pass_at_k_needs_enough_samples(k: int) -> None:
    with pytest.raises(ValueError, match="which is 3"):
        pass_at_k(torch.ones(2, 3, dtype=torch.bool), k)


def test_options_are_read_and_refused() -> None:
    readers = {"terms": int, "noise": float}
    assert read_options(" terms=3, noise=0.5,", readers, ",", "x") == {"terms": 3, "noise": 0.5}
    for text, message in {
        "term=3": "option 'term' is not known; did you mean 'terms'",
        "terms": "cannot read 'terms'; write name=value",
        "terms=three": "cannot read terms=three: invalid literal",
        "terms=1,terms=2": "'terms' is given twice",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_options(text, readers, ",", "x")


def test_choose_lists_all_names_where_none_is_near() -> None:
    with pytest.raises(ValueError, match="there are red, blue"):
        choose("zzzz", ["red", "blue"], "colour")
