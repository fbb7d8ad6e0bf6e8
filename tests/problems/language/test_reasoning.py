import pickle
import sys
from dataclasses import replace

import pytest

from policyopt.problems.language import reasoning
from policyopt.problems.language.reasoning import Chat, FewShot, ReasoningGym
from policyopt.types import Prompt, generator

pytest.importorskip("reasoning_gym")
IDS = range(60)


def question(prompt: Prompt) -> str:
    assert isinstance(prompt, str)
    return prompt.rpartition("Q: ")[2].removesuffix("\nA:")


def test_chain_sum_has_two_one_digit_terms_unless_told_otherwise() -> None:
    def expression(text: str) -> list[list[str]]:
        return [question(prompt).split(": ")[1].split() for prompt in reasoning.parse(text).prompts(IDS)]

    for words in expression("chain_sum"):
        assert len(words) == 4  # a + b =
        assert all(len(number) == 1 for number in words[:-1:2])
    longer = expression("chain_sum?max_terms=3&max_digits=2")
    assert {len(words) for words in longer} == {4, 6}
    assert {len(number) for words in longer for number in words[:-1:2]} == {1, 2}


def test_few_shot_prompts_are_worked_examples_and_the_question() -> None:
    problem = reasoning.parse("chain_sum?shots=3")
    prompt = problem.prompts([7], "test")[0]
    assert isinstance(prompt, str)
    *examples, asked = prompt.split("\n\n")
    assert len(set(examples)) == 3
    for example in examples:
        worked, answer = example.removeprefix("Q: ").split("\nA: ")
        left, sign, right = worked.split(": ")[1].removesuffix(" =").split()
        assert int(answer) == int(left) + int(right) * (1 if sign == "+" else -1)
    assert asked.startswith("Q: State")
    assert asked.endswith(" =\nA:")
    assert problem.stop == ("\n",)
    assert problem.prompts([0])[0].startswith("\n\n".join(examples))  # type: ignore[union-attr]


def test_training_held_out_and_example_questions_are_apart_under_all_seeds() -> None:
    train, test, shots = set(), set(), set()
    for seed in (0, 1):
        problem = reasoning.parse(f"chain_sum?seed={seed}&train_size=2000")
        train |= {question(prompt) for prompt in problem.prompts(range(2000))}
        test |= {question(prompt) for prompt in problem.prompts(range(500), "test")}
        shots |= {asked for asked, _ in problem._examples()}
    assert not train & test
    assert not (train | test) & shots
    assert len(train | test) == pytest.approx(0.9 * 200, abs=16)  # all of the 200 questions that are no examples
    assert len(test) == pytest.approx(0.2 * 200, abs=17)  # three standard deviations


def test_demonstrations_score_full_marks_and_others_do_not() -> None:
    for template in (FewShot(), Chat()):
        problem = ReasoningGym(dataset="chain_sum", template=template)
        right = problem.demonstrations(IDS)
        assert {name: float(values.mean()) for name, values in problem.score(IDS, right).items()} == {
            "accuracy": 1.0,
            "score": 1.0,
            "format": 1.0,
            "reward": 1.0,
        }
        rotated = [*right[1:], right[0]]
        same = sum(one == other for one, other in zip(right, rotated, strict=True))
        assert problem.score(IDS, rotated)["accuracy"].sum() == same


@pytest.mark.parametrize(
    ("template", "response", "answer"),
    [
        (FewShot(), " 12\nQ: more", "12"),
        (FewShot(), "12", "12"),
        (FewShot(), "\n12", None),
        (FewShot(), "  ", None),
        (FewShot(stop=("\n\n", "Q:")), " a\nb Q: c", "a\nb"),
        (Chat(), "so <answer> 12 </answer>.", "12"),
        (Chat(), "<answer>1</answer> no, <answer>2</answer>", "2"),
        (Chat(), "<answer>1\n2</answer>", "1\n2"),
        (Chat(), "12", None),
        (Chat(), "<answer>12", None),
        (Chat(), "12</answer>", None),
        (Chat(), "</answer><answer>", None),
    ],
)
def test_answers_are_found_in_responses(template: FewShot | Chat, response: str, answer: str | None) -> None:
    assert template.extract(response) == answer


def test_part_marks_count_as_score_but_not_as_accuracy() -> None:
    problem = reasoning.parse("letter_counting?template=chat")
    truth = problem.demonstrations([0])[0]
    half = truth.replace("</answer>", "x</answer>")
    scores = problem.score([0, 0, 0], [truth, half, "none"])
    assert scores["accuracy"].tolist() == [1.0, 0.0, 0.0]
    assert 0.0 < scores["score"][1].item() < 1.0
    assert scores["format"].tolist() == [1.0, 1.0, 0.0]


def test_a_checker_that_raises_gives_no_marks() -> None:
    problem = reasoning.parse("prime_factorization")
    assert problem.score([0, 0], [" x", problem.demonstrations([0])[0]])["accuracy"].tolist() == [0.0, 1.0]


def test_chat_prompts_are_messages() -> None:
    asked = ReasoningGym(dataset="chain_sum", template=Chat(system="Be brief.")).prompts([0])[0]
    assert [message["role"] for message in asked] == ["system", "user"]  # type: ignore[index]
    assert asked[1]["content"].endswith("=\n\nGive the final answer between <answer> and </answer>.")  # type: ignore
    problem = reasoning.parse("chain_sum?template=chat")
    assert [message["role"] for message in problem.prompts([0])[0]] == ["user"]  # type: ignore[index]
    assert problem.stop == ()


def test_instances_are_the_same_in_every_problem_and_order() -> None:
    one, other = reasoning.parse("word_sorting"), pickle.loads(pickle.dumps(reasoning.parse("word_sorting")))
    assert one == other
    asked = one.prompts(IDS)
    reasoning._draw.cache_clear()
    reasoning._source.cache_clear()
    assert other.prompts(list(reversed(IDS)))[::-1] == asked
    assert replace(one, seed=1).prompts(IDS) != asked


def test_a_generator_without_answers_has_no_demonstrations() -> None:
    problem = reasoning.parse("graph_color?template=chat")
    assert problem.score([0], ["<answer>{}</answer>"])["format"].tolist() == [1.0]
    with pytest.raises(ValueError, match="'reasoning-gym-graph_color' has no demonstrations"):
        problem.demonstrations([0])


def test_evaluation_of_a_perfect_act() -> None:
    problem = reasoning.parse("chain_sum?evaluation_size=50")

    def act(prompts: list[Prompt], samples: int, greedy: bool) -> list[list[str]]:
        return [[text] for text in problem.demonstrations(range(len(prompts)), "test")]

    assert problem.evaluate(act, generator(0, "evaluate"))["eval/accuracy"] == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chain_sums", "reasoning-gym dataset 'chain_sums' is not known; did you mean 'chain_sum'"),
        ("", "reasoning-gym dataset '' is not known"),
        ("chain_sum?max_term=3", "option 'max_term' is not known; did you mean 'max_terms'"),
        ("chain_sum?max_terms=1", "does not accept the options .*max_terms must be >= min_terms"),
        ("chain_sum?max_terms=x", 'does not accept the options .*"max_terms": "x"'),
        ("chain_sum?template=chats", "template 'chats' is not known; did you mean 'chat'"),
        ("chain_sum?template=chat&shots=2", "shots belong to template=few-shot"),
        ("chain_sum?shots=150", "only .* distinct worked examples, 150 asked for"),
        ("chain_sum?test_size=0", "a split needs one instance or more"),
        ("mini_sudoku", "answers hold the stop text"),
        ("graph_color", "has no demonstrations"),
        ("composite", "does not accept the options {}"),
    ],
)
def test_bad_names_and_options_are_refused_before_work_starts(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reasoning.parse(text)


def test_options_of_a_problem_made_in_python_are_checked_as_well() -> None:
    with pytest.raises(ValueError, match="did you mean 'max_terms'"):
        ReasoningGym(dataset="chain_sum", options={"max_term": 3})


def test_a_generator_with_too_few_questions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reasoning._SHARES, "test", ())
    with pytest.raises(ValueError, match="too few questions to fill the split 'test'"):
        reasoning.parse("chain_sum?seed=4321")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(ValueError, match=r"pip install policyopt\[reasoning\]"):
        reasoning.parse("chain_sum")
