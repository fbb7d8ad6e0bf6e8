from itertools import product

import pytest
import torch

from policyopt import registry
from policyopt.problems.language.mnns import MinimumSignedSum, minimum, parse, superposition, traces


@pytest.mark.parametrize(
    ("digits", "answer"),
    [((2, 5, 3, 9), 1), ((1, 1, 1, 1), 0), ((9, 9, 9, 9), 0), ((1, 2, 4, 8), 1), ((5, 3, 2, 4), 0)],
)
def test_minimum(digits, answer):
    assert minimum(digits) == answer


def test_minimum_against_search_by_value():
    for digits in product(range(1, 10), repeat=3):
        sums = {0}
        for digit in digits:
            sums = {value + sign * digit for value in sums for sign in (1, -1)}
        assert minimum(digits) == min(value for value in sums if value >= 0)


def test_superposition_of_all_traces():
    first, second, third = superposition((1, 1, 2))
    assert first == {-1: 0.5, 1: 0.5}
    assert second == {-2: 0.25, 0: 0.5, 2: 0.25}
    assert third == {-4: 0.125, -2: 0.25, 0: 0.25, 2: 0.25, 4: 0.125}


def test_few_traces_are_those_that_end_nearest_to_zero():
    assert traces((1, 2, 4, 8), 3) == [(-1, -3, -7, 1), (1, 3, 7, -1), (1, -1, -5, 3)]
    assert superposition((1, 1, 2), 1) == [{1: 1.0}, {2: 1.0}, {0: 1.0}]
    assert len(traces((1, 2, 4, 8))) == 16


def test_splits_share_no_multiset_and_hold_everything():
    problem = MinimumSignedSum()
    parts = {split: problem.digits(range(problem.size(split)), split) for split in ("train", "test")}
    assert len(set(parts["train"]) | set(parts["test"])) == 9**4 == sum(map(len, parts.values()))
    multisets = {split: {tuple(sorted(d)) for d in part} for split, part in parts.items()}
    assert not multisets["train"] & multisets["test"]
    assert len(multisets["test"]) == 99
    other = MinimumSignedSum(split_seed=1)
    assert set(other.digits(range(other.size("test")), "test")) != set(parts["test"])


def test_texts_and_scores():
    direct, chain = MinimumSignedSum(), MinimumSignedSum(chain=True)
    ids = range(50)
    for digits, prompt, told, answer in zip(
        direct.digits(ids), chain.prompts(ids), chain.demonstrations(ids), direct.demonstrations(ids), strict=True
    ):
        assert prompt == " ".join(f"D{d}" for d in digits) + " ->"
        sums = [int(word[1:]) for word in told.split()]
        steps = [abs(b - a) for a, b in zip([0, *sums], sums, strict=False)]
        assert tuple(steps) == digits
        assert answer == f"S{sums[-1]}" == f"S{minimum(digits)}"
    for problem in (direct, chain):
        right = problem.score(ids, problem.demonstrations(ids))["accuracy"]
        assert torch.equal(right, torch.ones(50))
    wrong = [text + " S36" for text in chain.demonstrations(ids)]
    assert chain.score(ids, wrong)["reward"].sum() == 0
    assert direct.score(ids, [""] * 50)["reward"].sum() == 0


def test_soft_demonstrations_end_with_the_answer():
    problem = MinimumSignedSum()
    (steps,) = problem.soft_demonstrations([7], 16)
    assert [len(steps), steps[-1]] == [4, {problem.demonstrations([7])[0]: 1.0}]
    assert all(sum(step.values()) == pytest.approx(1.0) for step in steps)


def test_tokenizer():
    tokenizer = MinimumSignedSum().tokenizer()
    assert len(tokenizer) == 89
    ids = tokenizer("D2 D9 -> S-36 S36")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert len(ids) == 6
    assert tokenizer.decode(ids, skip_special_tokens=True) == "D2 D9 -> S-36 S36"


def test_evaluation_asks_for_the_likeliest_answers():
    problem = MinimumSignedSum(evaluation_size=20)
    right = dict(zip(problem.prompts(range(20), "test"), problem.demonstrations(range(20), "test"), strict=True))
    asked = []

    def act(prompts, samples, greedy):
        asked.append((samples, greedy))
        return [[right[p] if i % 4 else "S36"] for i, p in enumerate(prompts)]

    assert problem.evaluate(act, torch.Generator()) == {"eval/accuracy": 0.75}
    assert asked == [(1, True)]


def test_bad_input():
    with pytest.raises(ValueError, match="length=7"):
        MinimumSignedSum(length=7)
    with pytest.raises(ValueError, match="chain=maybe"):
        parse("chain=maybe")
    with pytest.raises(ValueError, match="did you mean"):
        parse("lenght=3")
    assert parse("length=3,chain=yes").max_new_tokens == 4
    assert registry.problem("signed-sum:chain=yes").chain
