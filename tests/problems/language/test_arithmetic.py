import pickle
import re
from dataclasses import replace
from functools import reduce

import pytest
import torch

from policyopt.problems.language import arithmetic
from policyopt.problems.language.arithmetic import ALPHABET, Arithmetic, Calculator, Chain

IDS = range(200)
VARIANTS = [
    "",
    "terms=2-7,wordiness=0-2,modulus=97",
    "wordiness=2,noise=0.5",
    "operations=*,terms=6",
    "calculator,calls=0.5,wordiness=0-2,noise=0.5",
]


def worked(expression: str, modulus: int) -> int:
    """An independent worker: read the text again and fold it from the left."""
    first, *rest = re.findall(r"[-+*]?\d+", expression)

    def apply(value: int, term: str) -> int:
        operand = int(term[1:])
        return {"+": value + operand, "-": value - operand, "*": value * operand}[term[0]] % modulus

    return reduce(apply, rest, int(first))


def answers(responses: list[str]) -> list[int]:
    return [int(response.split(";")[1]) for response in responses]


def test_the_formats_of_the_module_docstring() -> None:
    chain = Chain("3+4*2-5", (3, 4, 2, 5), "+*-", (7, 4, 9))
    written = [arithmetic._spell(chain, 10, [style] * 3, [0, 0, 0]) for style in (*arithmetic.STEPS, arithmetic.CALL)]
    assert written == ["7,4,9;9", "3+4=7,7*2=4,4-5=9;9", "3+4=7=7,7*2=14=4,4-5=-1=9;9", "<3+4>7,<7*2>4,<4-5>9;9"]
    for line in written:
        assert line in (arithmetic.__doc__ or "")


def test_running_sums_carry_a_slip_on_and_slip_as_often_as_said() -> None:
    problem = arithmetic.parse("operations=+,terms=9,noise=0.12")
    slips = right = 0
    for prompt, response in zip(problem.prompts(range(500)), problem.demonstrations(range(500)), strict=True):
        values = [int(digit) for digit in str(prompt)[:-1].split("+")]
        steps = [int(step) for step in response.partition(";")[0].split(",")]
        assert len(steps) == 8
        assert int(response[-1]) == steps[-1]
        before = [values[0], *steps[:-1]]
        slips += sum((a + b) % 10 != c for a, b, c in zip(before, values[1:], steps, strict=True))
        right += sum(values) % 10 == steps[-1]
    assert slips / 4000 == pytest.approx(0.12, abs=0.02)
    assert float(problem.score(range(500), problem.demonstrations(range(500)))["accuracy"].sum()) == right


@pytest.mark.parametrize("text", VARIANTS)
def test_right_demonstrations_score_full_marks_and_fit(text: str) -> None:
    problem = replace(arithmetic.parse(text), noise=0.0)
    prompts, responses = problem.prompts(IDS), problem.demonstrations(IDS)
    assert answers(responses) == [worked(str(prompt)[:-1], problem.modulus) for prompt in prompts]
    scores = problem.score(IDS, responses)
    assert all(bool((scores[name] == 1).all()) for name in ("accuracy", "format", "reward"))
    assert set("".join(map(str, prompts)) + "".join(responses)) <= set(ALPHABET)
    assert max(map(len, responses)) + 1 <= problem.max_new_tokens / 2


def test_the_longest_demonstration_is_as_long_as_said() -> None:
    for text in ("terms=2,wordiness=1", "terms=3,wordiness=2,operations=*", "calculator,terms=2"):
        problem = arithmetic.parse(text)
        longest = max(map(len, problem.demonstrations(range(1000))))
        assert problem.max_new_tokens == 2 * (longest + 1)


@pytest.mark.parametrize("text", VARIANTS)
def test_instances_are_the_same_in_every_problem_and_order(text: str) -> None:
    one, other = arithmetic.parse(text), pickle.loads(pickle.dumps(arithmetic.parse(text)))
    assert one == other
    assert hash(one) == hash(other)
    backwards = list(reversed(IDS))
    assert one.demonstrations(IDS) == other.demonstrations(backwards)[::-1]
    assert one.prompts(IDS) != replace(one, seed=one.seed + 1).prompts(IDS)


def test_instances_are_fixed_for_good() -> None:
    """A change of these lines changes every recorded result."""
    assert arithmetic.parse("terms=4").prompts(range(3)) == ["2+5+9-4=", "1-2-0-1=", "8-1+8+0="]
    assert arithmetic.parse("terms=4").prompts(range(2), "test") == ["7+4*2*6=", "6*8-8*3="]


def test_held_out_expressions_are_never_trained_on_under_any_seed() -> None:
    small = [Arithmetic(terms=(2, 3), modulus=4, seed=seed, train_size=10_000) for seed in (0, 1)]
    trained = {prompt for problem in small for prompt in problem.prompts(range(10_000))}
    held_out = {prompt for problem in small for prompt in problem.prompts(range(1000), "test")}
    assert not trained & held_out
    assert len(held_out) > 30
    assert len(trained) + len(held_out) == 4**2 * 3 + 4**3 * 9  # together, the whole space


def test_chains_have_the_asked_lengths_values_and_operations() -> None:
    chains = Arithmetic(terms=(2, 4), modulus=7, operations="-*").chains(range(2000))
    assert {len(chain.values) for chain in chains} == {2, 3, 4}
    assert {value for chain in chains for value in chain.values} == set(range(7))
    assert {sign for chain in chains for sign in chain.operations} == {"-", "*"}
    first = torch.tensor([chain.values[0] for chain in chains]).bincount()
    assert bool(((first - 2000 / 7).abs() < 80).all())  # five standard deviations


def test_noise_is_the_share_of_wrong_steps_and_wrong_values_are_carried_on() -> None:
    problem = Arithmetic(terms=5, wordiness=1, noise=0.25)
    steps = [step for text in problem.demonstrations(range(1000)) for step in text.split(";")[0].split(",")]
    wrong = [worked(step.split("=")[0], 10) != int(step.split("=")[1]) for step in steps]
    assert sum(wrong) / len(wrong) == pytest.approx(0.25, abs=0.035)  # five standard deviations of 4000 steps
    for text in problem.demonstrations(IDS):
        body, answer = text.split(";")
        carried = [re.match(r"\d+", step).group() for step in body.split(",")[1:]]  # type: ignore[union-attr]
        assert [step.split("=")[1] for step in body.split(",")] == [*carried, answer]
    assert problem.prompts(IDS) == replace(problem, noise=0.0).prompts(IDS)


@pytest.mark.parametrize(
    ("response", "accuracy", "readable"),
    [
        ("{0}", 0, 0),
        (";{0}", 1, 1),
        ("1,2;{0}", 1, 1),
        ("1,2; {0}\n", 1, 1),
        ("{0};", 0, 0),
        (";0{0}", 0, 0),
        (";{0};", 0, 0),
        ("0;{0}", 1, 1),
        ("1;2;{0}", 1, 1),
        (";-{0}", 0, 0),
        (";10", 0, 0),
        (";" + "9" * 9000, 0, 0),
        (";٣", 0, 0),
        ("", 0, 0),
    ],
)
def test_scores_of_odd_responses(response: str, accuracy: int, readable: int) -> None:
    problem = Arithmetic()
    scores = problem.score([5], [response.format(problem.chains([5])[0].results[-1])])
    assert (scores["accuracy"].item(), scores["format"].item()) == (accuracy, readable)


def test_a_readable_wrong_answer() -> None:
    problem = Arithmetic(reward_weights={"accuracy": 1.0, "format": 0.25})
    wrong = (problem.chains([5])[0].results[-1] + 1) % 10
    assert problem.score([5], [f";{wrong}"])["reward"].tolist() == [0.25]


@pytest.mark.parametrize("text", VARIANTS)
def test_hints_are_growing_prefixes_of_a_right_response(text: str) -> None:
    problem = arithmetic.parse(text)
    right = [chosen for (chosen, _), _ in problem.rankings(IDS)]
    assert problem.hints(IDS, 0.0) == [""] * len(IDS)
    assert problem.hints(IDS, 1.0) == [response.split(";")[0] + ";" for response in right]
    for hint, response, chain in zip(problem.hints(IDS, 0.5), right, problem.chains(IDS), strict=True):
        assert response.startswith(hint)
        assert hint.count(",") == round(0.5 * len(chain.operations)) or hint.endswith(";")
    with pytest.raises(ValueError, match=r"share=1.5 .* between 0 and 1"):
        problem.hints(IDS, 1.5)


@pytest.mark.parametrize("text", VARIANTS)
def test_rankings_are_right_and_wrong(text: str) -> None:
    problem = arithmetic.parse(text)
    chosen, rejected = map(list, zip(*(pair for pair, _ in problem.rankings(IDS)), strict=True))
    assert problem.score(IDS, chosen)["accuracy"].mean() == 1
    assert problem.score(IDS, rejected)["accuracy"].mean() == 0
    assert problem.score(IDS, rejected)["format"].mean() == 1


def test_a_rejected_response_has_one_slip() -> None:
    for (_, rejected), _ in Arithmetic(wordiness=1, terms=5).rankings(IDS):
        steps = [step.split("=") for step in rejected.split(";")[0].split(",")]
        assert sum(worked(left, 10) != int(right) for left, right in steps) == 1


def test_budget_counts_characters() -> None:
    scores = Arithmetic(budget=4, reward_weights={"within_budget": 1.0}).score([0, 0, 0], ["", "12;3", "12;34"])
    assert scores["reward"].tolist() == [1.0, 1.0, 0.0]
    assert "within_budget" not in Arithmetic().score([0], [""])


@pytest.mark.parametrize(
    ("transcript", "reply"),
    [
        ("3+4*2=<3+4>", "7"),
        ("1=7,<4-5>", "9"),
        ("<9*9>", "1"),
        ("<12*12>", "4"),
        ("<3+4>7", None),
        ("", None),
        ("<3+>", "?"),
        (">", "?"),
        ("3+4>", "?"),
        ("<3+4+5>", "?"),
        ("<3**9>", "?"),
        ("<" + "9" * 50 + "*9>", "?"),
        ("<1234567*1>", "?"),
        ("<3+4>7" * 15 + "<3+4>", "7"),
        ("<3+4>7" * 16 + "<3+4>", None),
    ],
)
def test_calculator_replies(transcript: str, reply: str | None) -> None:
    assert Calculator().reply(transcript) == reply


def test_calculator_replies_as_its_demonstrations_say() -> None:
    problem = arithmetic.parse("calculator,modulus=97,terms=5,noise=0.9,calls=0.5")
    calls = 0
    for response in problem.demonstrations(IDS):
        for call in re.finditer(r">(\d+)", response):
            assert isinstance(problem, Calculator)
            assert problem.reply(response[: call.start() + 1]) == call[1]
            calls += 1
    assert calls == problem.score(IDS, problem.demonstrations(IDS))["calls"].sum()
    assert calls / (4 * len(IDS)) == pytest.approx(0.5, abs=0.09)


def test_a_calculator_is_never_wrong() -> None:
    problem = Calculator(noise=1.0)
    assert problem.score(IDS, problem.demonstrations(IDS))["accuracy"].mean() == 1


def test_parse_reads_options() -> None:
    assert arithmetic.parse("terms=6,noise=0.1,wordiness=0-2") == Arithmetic(terms=6, noise=0.1, wordiness=(0, 2))
    assert arithmetic.parse("calculator,calls=0.5") == Calculator(calls=0.5)
    assert arithmetic.parse() == Arithmetic()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("term=6", "option 'term' is not known; did you mean 'terms'"),
        ("terms=1", "terms=1 is not possible; expected 2 or more"),
        ("terms=5-3", r"terms=\(5, 3\) is not possible"),
        ("terms=many", "cannot read terms=many"),
        ("modulus=1", "modulus=1 is not possible"),
        ("operations=+/", "operations=.* some of"),
        ("operations=", "operations= is not possible"),
        ("wordiness=3", "wordiness=3 is not possible; expected 0, 1 or 2"),
        ("noise=1.5", "noise=1.5 is not possible; expected a probability"),
        ("noise=nan", "noise=nan is not possible"),
        ("budget=0", "budget=0 is not possible"),
        ("test_size=0", "train_size and test_size"),
        ("terms=4,max_new_tokens=7", "at least 8, the longest demonstration"),
        ("calls=0.5", "option 'calls' is not known"),
        ("calculator,calls=2", "calls=2.0 is not possible"),
    ],
)
def test_bad_options_are_refused_before_work_starts(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arithmetic.parse(text)


def test_ids_outside_a_split_are_refused() -> None:
    for call in (Arithmetic().prompts, Arithmetic().demonstrations, Arithmetic().rankings):
        with pytest.raises(ValueError, match="ids of the split 'test' are 0 to 999"):
            call([1000], "test")


def test_a_split_that_cannot_be_filled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "_held_out", lambda text: False)
    with pytest.raises(ValueError, match="too few expressions to fill the split 'test'"):
        Arithmetic(terms=2, modulus=2, operations="+", seed=12345)
