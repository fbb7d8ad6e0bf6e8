"""Eight synthetic domains: each language is what it says, and a seed repeats it."""

import pytest
import torch

from policyopt.problems.language.domains import (
    ARROW,
    BAR,
    BRACKETS,
    EQUALS,
    PLUS,
    VOCABULARY,
    WORD,
    Domains,
    MarkovChain,
    arithmetic,
    brackets,
    copying,
    sorting,
)
from policyopt.types import generator


def test_arithmetic_is_right():
    for row in arithmetic(20, 41, generator(0, "text")).tolist():
        for start in range(0, 37, 4):
            value, sign, digit, equals, result = row[start : start + 5]
            assert equals == EQUALS
            assert result == (value + (digit if sign == PLUS else -digit)) % 10


@pytest.mark.parametrize(("make", "turn"), [(copying, list), (sorting, sorted)])
def test_words_are_followed_by_their_result(make, turn):
    for row in make(20, 64, generator(0, "text")).tolist():
        for start in range(0, 64, 2 * WORD + 2):
            word, result = row[start : start + WORD], row[start + WORD + 1 : start + 2 * WORD + 1]
            assert row[start + WORD] == ARROW
            assert row[start + 2 * WORD + 1] == BAR
            assert result == turn(word)


def test_brackets_close_the_last_one_opened():
    deepest = 0
    for row in brackets(50, 200, generator(0, "text")).tolist():
        stack = []
        for token in row:
            kind, closing = divmod(token - BRACKETS, 2)
            assert not closing or stack.pop() == kind
            stack += [] if closing else [kind]
            deepest = max(deepest, len(stack))
    assert deepest == 8


def test_a_chain_follows_its_probabilities():
    chain = MarkovChain(first=30, seed=1)
    text = chain(1000, 200, generator(0, "text")) - 30
    pairs = torch.zeros(16, 16).index_put_((text[:, :-1].flatten(), text[:, 1:].flatten()), torch.tensor(1.0), True)
    chances = chain.cumulative.diff(dim=1, prepend=torch.zeros(16, 1))
    assert ((chances > 1e-6).sum(1) == 4).all()
    assert (pairs[chances < 1e-6] == 0).all()
    visits = pairs.sum(1, keepdim=True)
    errors = (pairs / visits - chances) / (chances * (1 - chances) / visits).sqrt()
    assert errors[chances > 1e-6].abs().max() < 4.5


def test_rows_take_the_domains_in_turn_and_repeat_with_the_seed():
    problem = Domains(length=32)
    text, domain = problem.sample(20, generator(3, "text"))
    assert text.shape == (20, 32)
    assert domain.tolist() == [n % 8 for n in range(20)]
    assert 0 <= text.min() <= text.max() < VOCABULARY
    assert torch.equal(problem.sample(20, generator(3, "text"))[0], text)
    assert not torch.equal(problem.sample(20, generator(4, "text"))[0], text)
    assert not torch.equal(Domains(length=32, seed=1).sample(20, generator(3, "text"))[0][4], text[4])


def test_evaluation_gives_the_loss_of_each_domain():
    problem = Domains(length=16, evaluation_size=16)
    found = problem.evaluate(
        lambda tokens: torch.full((16, 15), -2.0).index_fill(0, torch.tensor([1, 9]), -4.0), generator(0, "text")
    )
    assert found["eval/loss"] == pytest.approx(2.25)
    assert found["eval/loss/copying"] == pytest.approx(4.0)
    assert found["eval/loss/brackets"] == pytest.approx(2.0)


def test_a_sequence_of_one_token_is_refused():
    with pytest.raises(ValueError, match="length=1"):
        Domains(length=1)
