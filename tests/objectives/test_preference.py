"""Losses on ranked responses: values by hand, equality with one another, micro-batches, TRL's numbers where it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import logsigmoid

from policyopt.methods.rdpo import Robust
from policyopt.models.language import LanguagePolicy
from policyopt.models.tiny import character_tokenizer, tiny_model
from policyopt.objectives.preference import (
    AverageLogRatio,
    Hinge,
    Likelihood,
    ListLoss,
    LogRatio,
    PlackettLuce,
    Preference,
    Sigmoid,
    Square,
    ordered_pairs,
    plackett_luce_loss,
    ranked_rows,
)
from policyopt.problems.language.arithmetic import Arithmetic
from policyopt.rollouts.preferences import ranked_responses
from policyopt.types import Outputs

LOGP, REF, LABELS = [[-10.0, -12.0], [-8.0, -7.0]], [[-11.0, -11.5], [-9.0, -9.0]], [[1.0, 0.0], [0.0, 1.0]]


def loss_of(objective, outputs, batch):
    return objective(outputs, objective.prepare(batch))


@pytest.mark.parametrize(
    ("loss", "textbook"),
    [
        (Sigmoid(beta=0.1), lambda h: -logsigmoid(0.1 * h)),
        (Sigmoid(beta=0.1, smoothing=0.2), lambda h: -0.8 * logsigmoid(0.1 * h) - 0.2 * logsigmoid(-0.1 * h)),
        (Hinge(beta=0.1), lambda h: (1 - 0.1 * h).clamp(min=0)),
        (Square(beta=0.1), lambda h: (h - 5.0) ** 2),
        (PlackettLuce(beta=0.1), lambda h: -logsigmoid(0.1 * h)),
    ],
)
def test_value_and_gradient_are_the_textbooks(lists, loss: ListLoss, textbook) -> None:
    outputs, batch = lists(LOGP, REF, LABELS)
    got = loss_of(Preference(loss=loss), outputs, batch)
    logp = torch.tensor(LOGP, dtype=torch.float64, requires_grad=True)
    s = logp - torch.tensor(REF, dtype=torch.float64)
    want = textbook(torch.stack([s[0, 0] - s[0, 1], s[1, 1] - s[1, 0]])).mean()
    torch.testing.assert_close(got.value, want)
    torch.testing.assert_close(
        torch.autograd.grad(got.value, outputs.logp)[0].view(2, 2), torch.autograd.grad(want, logp)[0]
    )


def test_metrics_compare_best_and_worst(lists) -> None:
    outputs, batch = lists(LOGP, REF, LABELS)
    metrics = loss_of(Preference(loss=Sigmoid(beta=0.1)), outputs, batch).metrics
    assert float(metrics["preference/accuracy"]) == 1.0  # h = 1.5 and 1
    assert float(metrics["preference/margin"]) == pytest.approx(0.1 * (1.5 + 1.0) / 2)
    assert float(metrics["logp/chosen"]) == pytest.approx((-10 - 7) / 2)


def test_a_list_of_four_is_all_its_ordered_pairs(lists) -> None:
    logp, labels = torch.randn(3, 4).double(), torch.tensor([[3.0, 1.0, 1.0, 0.0]] * 3)
    outputs, batch = lists(logp, torch.zeros(3, 4), labels)
    got = loss_of(Preference(loss=Sigmoid(beta=0.5)), outputs, batch).value
    pairs = [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]
    want = torch.stack([-logsigmoid(0.5 * (logp[:, i] - logp[:, j])) for i, j in pairs]).mean()
    torch.testing.assert_close(got, want)


def test_micro_batches_add_up_to_the_whole(lists) -> None:
    labels = torch.tensor([[2.0, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])  # 3, 2 and 2 ordered pairs
    outputs, batch = lists(torch.randn(3, 3), torch.randn(3, 3), labels)
    objective = Preference(loss=Sigmoid())
    prepared = objective.prepare(batch)
    parts = [
        objective(Outputs(logp=outputs.logp[rows]), prepared[rows]) for rows in (torch.arange(3), torch.arange(3, 9))
    ]
    torch.testing.assert_close(sum(part.value for part in parts), objective(outputs, prepared).value)
    accuracy = sum(part.metrics["preference/accuracy"] for part in parts)
    torch.testing.assert_close(accuracy, objective(outputs, prepared).metrics["preference/accuracy"])


def test_scores_of_a_sequence(lists) -> None:
    outputs, batch = lists([[-4.0, -6.0]], [[-5.0, -5.0]], [[1.0, 0.0]], length=4)
    batch = batch.replace(mask=torch.tensor([[True, True, True, False]] * 2))
    torch.testing.assert_close(LogRatio()(outputs, batch), torch.tensor([0.75, -0.75], dtype=torch.float64))
    torch.testing.assert_close(AverageLogRatio()(outputs, batch), torch.tensor([0.25, -0.25], dtype=torch.float64))
    torch.testing.assert_close(Likelihood()(outputs, batch), torch.tensor([-3.0, -4.5], dtype=torch.float64))
    weighted = batch.replace(weight=torch.tensor([[2.0, 0.0, 1.0, 9.0]] * 2))
    torch.testing.assert_close(LogRatio()(outputs, weighted), torch.tensor([0.75, -0.75], dtype=torch.float64))


def test_rows_are_ranked_whatever_their_order(lists) -> None:
    _, batch = lists([[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]])
    assert ranked_rows(batch).tolist() == [[1, 0], [2, 3]]
    assert ranked_rows(batch[torch.tensor([3, 1, 0, 2])]).tolist() == [[1, 2], [3, 0]]
    with pytest.raises(ValueError, match="lists of one length, of 2 responses or more; got 1 to 2"):
        ranked_rows(batch[:3])


def test_equal_labels_give_no_pair_and_no_gradient(lists) -> None:
    outputs, batch = lists([[-1.0, -2.0]], [[0.0, 0.0]], [[0.5, 0.5]])
    value = loss_of(Preference(loss=Sigmoid()), outputs, batch).value
    assert float(value) == 0.0 and not torch.autograd.grad(value, outputs.logp)[0].any()
    assert not ordered_pairs(batch.scores["reward"].view(1, 2)).any()


def test_plackett_luce_by_hand() -> None:
    assert float(plackett_luce_loss(torch.tensor([[0.5, 0.2, -0.3]]))) == pytest.approx(1.25804573, abs=1e-6)


@pytest.mark.parametrize("bad", [{"beta": 0.0}, {"smoothing": 0.5}])
def test_impossible_settings(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"positive|below 0\.5"):
        Sigmoid(**bad)


def test_trl_has_the_same_numbers(tmp_path: Path) -> None:
    """The losses of TRL's trainer on a model that moved away from its reference, and ours on the same pairs."""
    dpo = pytest.importorskip("trl.trainer.dpo_trainer")
    config = pytest.importorskip("trl.trainer.dpo_config")
    from datasets import Dataset

    problem = Arithmetic()
    ids = range(4)
    pairs = [texts for texts, _ in problem.rankings(ids)]
    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, (c, r) in zip(problem.prompts(ids), pairs, strict=True)]
    tokenizer = character_tokenizer()
    policy = LanguagePolicy(tiny_model(1, len(tokenizer)), tokenizer)
    reference = LanguagePolicy(tiny_model(0, len(tokenizer)), tokenizer)
    batch, _ = ranked_responses(policy, problem, ids)
    batch = batch.replace(ref_logp=reference.evaluate(batch).logp.detach())
    outputs = policy.evaluate(batch)
    settings = config.DPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, use_cpu=True, report_to="none", beta=0.1
    )
    trainer = dpo.DPOTrainer(
        model=tiny_model(1, len(tokenizer)),
        ref_model=tiny_model(0, len(tokenizer)),
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    ours = {
        "sigmoid": Preference(loss=Sigmoid(beta=0.1)),
        "robust": Preference(loss=Robust(beta=0.1, flip=0.2)),
        "hinge": Preference(loss=Hinge(beta=0.1)),
        "ipo": Preference(score=AverageLogRatio(), loss=Square(beta=0.1)),
    }
    for name, objective in ours.items():
        trainer.loss_types, trainer.label_smoothing = [name], 0.2 if name == "robust" else 0.0
        theirs = trainer._compute_loss(trainer.model, inputs, return_outputs=False)
        torch.testing.assert_close(objective(outputs, objective.prepare(batch)).value, theirs, atol=1e-4, rtol=5e-4)
