"""Strings with a known reward: the reward by hand, reproducible data, the law of labels, flips and shifts."""

from __future__ import annotations

import pytest
import torch

from policyopt.problems.language.bigrams import Bigrams, parse


def test_the_reward_is_the_sum_over_neighbours() -> None:
    problem = Bigrams(letters=4, length=3)
    scores = problem.pair_scores()
    want = scores[1, 0] + scores[0, 0] + scores[0, 3]  # prompt b, response aad; what is beyond the length doesn't count
    got = problem.true_reward([1, 1], ["aad", "aadb"])
    torch.testing.assert_close(got, torch.tensor([want, want]).float())
    assert float(problem.true_reward([0], [""])) == 0.0


def test_the_same_data_in_every_run_and_splits_apart() -> None:
    one, two = Bigrams(), Bigrams()
    assert one.rankings(range(5)) == two.rankings(range(5)) and one.demonstrations([3]) == two.demonstrations([3])
    assert one.rankings(range(5)) != one.rankings(range(5), "test")


@pytest.mark.parametrize("flips", [0.0, 0.4])
def test_labels_are_bradley_terry(flips: float) -> None:
    problem = Bigrams(flips=flips, train_size=3000)
    rankings = problem.rankings(range(3000))
    chosen = problem.true_reward(range(3000), [texts[0] for texts, _ in rankings])
    rejected = problem.true_reward(range(3000), [texts[1] for texts, _ in rankings])
    probability = (chosen - rejected).abs().sigmoid().mean()
    right = float((chosen > rejected).float().mean())
    assert right == pytest.approx(float(probability) * (1 - flips) + (1 - float(probability)) * flips, abs=0.03)


def test_lists_are_labelled_by_their_chance_to_win() -> None:
    problem = Bigrams(responses=5)
    ((texts, labels),) = problem.rankings([7])
    reward = problem.true_reward([7] * 5, texts)
    assert list(labels) == sorted(labels, reverse=True) and reward.tolist() == sorted(reward.tolist(), reverse=True)
    want = (reward[:, None] - reward[None, :]).sigmoid().mean(1)
    torch.testing.assert_close(torch.tensor(labels).float(), want)
    assert len(set(texts)) == 5


def test_demonstrations_prefer_good_pairs() -> None:
    skilled, plain = Bigrams(skill=1.0), Bigrams(skill=0.0)
    means = [p.true_reward(range(300), p.demonstrations(range(300))).mean() for p in (skilled, plain)]
    assert float(means[0] - means[1]) > 1.0


def test_a_shift_moves_a_prompts_rewards_alike() -> None:
    problem = Bigrams(shift=5.0)
    scores = problem.score([3, 3, 4], ["ab", "ba", "ab"])
    offset = scores["reward"] - scores["true"]
    assert float(offset[0]) == pytest.approx(float(offset[1]), abs=1e-5) and abs(float(offset[0] - offset[2])) > 1e-3


def test_the_tokenizer_reads_letter_by_letter() -> None:
    tokenizer = Bigrams(letters=5).tokenizer()
    assert tokenizer(["abe"])["input_ids"] == [[3, 4, 7]] and len(tokenizer) == 8


def test_parsing_and_refusals() -> None:
    assert parse("letters=8,flips=0.3,responses=8") == Bigrams(letters=8, flips=0.3, responses=8)
    with pytest.raises(ValueError, match="did you mean 'letters'"):
        parse("leters=8")
    with pytest.raises(ValueError, match=r"below 0\.5, got 0\.5"):
        Bigrams(flips=0.5)
