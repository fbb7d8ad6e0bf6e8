"""Objectives on ranked responses to one prompt: DPO and its family.

The rows of a group are a list of K responses, best first by their score "reward". Each has a sequence score
s = Σ_t weight_t (log π - log reference), summed over its tokens, and the loss is a function of the scores of a list. A method
chooses a ``SequenceScore``, a ``ListLoss`` and ``ListRegularizer``s; ``h`` is the difference of the scores of a pair.

Gradients reach the policy through the scores alone. Implicit rewards are β s, for the log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from policyopt.objectives.policy_gradient import Objective, counted
from policyopt.parallel import all_sum
from policyopt.types import Loss, Outputs, Part, Rollouts

# -- losses of a pair: pure functions of the margin m = β h, elementwise


def sigmoid_loss(margin: Tensor, smoothing: float = 0.0) -> Tensor:
    """-(1 - ε) log σ(m) - ε log σ(-m): DPO (arXiv 2305.18290, Eq. 7), and with ε its label smoothing (cDPO)."""
    return -(1.0 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)


def robust_loss(margin: Tensor, flip: float) -> Tensor:
    """[-(1 - ε) log σ(m) + ε log σ(-m)] / (1 - 2ε): unbiased where a share ε of the labels is flipped (arXiv 2403.00409)."""
    return (-(1.0 - flip) * logsigmoid(margin) + flip * logsigmoid(-margin)) / (1.0 - 2.0 * flip)


def hinge_loss(margin: Tensor) -> Tensor:
    """max(0, 1 - m): SLiC's loss on normalised scores (arXiv 2309.06657, Eq. 11)."""
    return relu(1.0 - margin)


def square_loss(difference: Tensor, target: Tensor | float) -> Tensor:
    """(h - target)²: IPO with target 1/(2β) (arXiv 2310.12036, Eq. 17), INPO with 1/(2η)."""
    return (difference - target).square()


def plackett_luce_loss(scores: Tensor) -> Tensor:
    """-Σ_k log( exp s_k / Σ_{j ≥ k} exp s_j ) of scores [L, K], best first → [L]; K = 2 is ``sigmoid_loss``."""
    later = scores.flip(-1).logcumsumexp(-1).flip(-1)
    return (later - scores).sum(-1)


# -- lists


def ranked_rows(batch: Rollouts) -> Tensor:
    """Row indices [L, K] of the lists of a batch, best score first (ties keep their order).

    Raises ValueError where lists differ in length or have a single response.
    """
    assert batch.group is not None
    reward = batch.scores["reward"]
    order = reward.argsort(descending=True, stable=True)
    order = order[batch.group[order].argsort(stable=True)]
    _, size = batch.group.unique(return_counts=True)
    if int(size.min()) != int(size.max()) or int(size.min()) < 2:
        raise ValueError(
            f"preferences need lists of one length, of 2 responses or more; got {int(size.min())} to {int(size.max())}"
        )
    return order.view(len(size), int(size[0]))


def ordered_pairs(labels: Tensor) -> Tensor:
    """labels [L, K] → [L, K, K], True at (i, j) where i is labelled strictly higher than j."""
    return labels[:, :, None] > labels[:, None, :]


@dataclass(frozen=True, kw_only=True)
class ListLoss(Part):
    """Scores [L, K], best first, and labels [L, K] → the loss of each list [L]."""

    beta: float = 0.1

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be positive, got {self.beta}")

    def count(self, labels: Tensor) -> Tensor:
        """[L]: what a list adds to the divisor of the minibatch's mean; one by default."""
        return torch.ones_like(labels[:, 0])

    def __call__(self, scores: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class PairLoss(ListLoss):
    """The mean over all strictly ordered pairs of the minibatch of a function of h = s_i - s_j; a list of two is one."""

    def count(self, labels: Tensor) -> Tensor:
        return ordered_pairs(labels).flatten(1).sum(1).float()

    def pair(self, difference: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, scores: Tensor, labels: Tensor) -> Tensor:
        loss = self.pair(scores[:, :, None] - scores[:, None, :])
        return torch.where(ordered_pairs(labels), loss, 0.0).flatten(1).sum(1)


@dataclass(frozen=True, kw_only=True)
class Sigmoid(PairLoss):
    """DPO's loss; ``smoothing`` is the share of labels taken for wrong (cDPO)."""

    smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.smoothing < 0.5:
            raise ValueError(f"smoothing is a share of wrong labels below 0.5, got {self.smoothing}")

    def pair(self, difference: Tensor) -> Tensor:
        return sigmoid_loss(self.beta * difference, self.smoothing)


@dataclass(frozen=True, kw_only=True)
class Hinge(PairLoss):
    """max(0, 1 - β h)."""

    def pair(self, difference: Tensor) -> Tensor:
        return hinge_loss(self.beta * difference)


@dataclass(frozen=True, kw_only=True)
class Square(PairLoss):
    """(h - 1/(2β))²: IPO."""

    def pair(self, difference: Tensor) -> Tensor:
        return square_loss(difference, 0.5 / self.beta)


@dataclass(frozen=True, kw_only=True)
class PlackettLuce(ListLoss):
    """The likelihood of a whole ranking (arXiv 2305.18290, Eq. 18)."""

    def __call__(self, scores: Tensor, labels: Tensor) -> Tensor:
        return plackett_luce_loss(self.beta * scores)


# -- scores of a sequence


@dataclass(frozen=True, kw_only=True)
class SequenceScore(Part):
    """outputs + batch → one score a row [N], with gradient."""

    want: ClassVar[tuple[str, ...]] = ("logp",)

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class LogRatio(SequenceScore):
    """Σ_t weight_t (log π - log reference) over the response's tokens, its end included; not divided by the length."""

    needs: ClassVar[tuple[str, ...]] = ("ref_logp",)

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Tensor:
        assert outputs.logp is not None
        return ((outputs.logp - batch.ref_logp) * counted(batch)).sum(1)


@dataclass(frozen=True, kw_only=True)
class AverageLogRatio(LogRatio):
    """The mean over the response's tokens of log π - log reference."""

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Tensor:
        return super().__call__(outputs, batch) / counted(batch).sum(1)


@dataclass(frozen=True, kw_only=True)
class Likelihood(SequenceScore):
    """Σ_t log π: no reference."""

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Tensor:
        assert outputs.logp is not None
        return (outputs.logp * counted(batch)).sum(1)


@dataclass(frozen=True, kw_only=True)
class Value(SequenceScore):
    """What a reward model says of the response: with the sigmoid loss and β = 1 the Bradley-Terry likelihood."""

    want: ClassVar[tuple[str, ...]] = ("value",)

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Tensor:
        assert outputs.value is not None
        return outputs.value


# -- what is added for each list


@dataclass(frozen=True, kw_only=True)
class ListRegularizer(Part):
    """A term for each list, averaged over the lists of the minibatch; ``name`` is its key in the log."""

    name: ClassVar[str] = "regularizer"
    coefficient: float

    def __call__(self, outputs: Outputs, batch: Rollouts, order: Tensor) -> Tensor:
        """order [L, K] are row indices, best first → [L] with gradient."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ChosenLikelihood(ListRegularizer):
    """-Σ_t log π of each list's best response; ``average`` divides it by the response's length."""

    name: ClassVar[str] = "imitation"
    average: bool = False

    def __call__(self, outputs: Outputs, batch: Rollouts, order: Tensor) -> Tensor:
        assert outputs.logp is not None
        best, steps = order[:, 0], counted(batch)
        total = (outputs.logp[best] * steps[best]).sum(1)
        return -total / steps[best].sum(1) if self.average else -total


# -- the objective


@dataclass(frozen=True, kw_only=True)
class Preference(Objective):
    """A loss of the scores of each list, plus regularizers. The default is DPO's."""

    whole_groups: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("scores", "group")
    score: SequenceScore = LogRatio()
    loss: ListLoss = Sigmoid()
    regularizers: tuple[ListRegularizer, ...] = ()

    def want(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.score.want, *(("logp",) if self.regularizers else ()))))

    def prepare(self, batch: Rollouts) -> Rollouts:
        order = ranked_rows(batch)
        counts = self.loss.count(batch.scores["reward"][order])
        total, lists = all_sum(counts.sum()).clamp(min=1.0), all_sum(torch.tensor(float(len(order))))
        share = torch.stack([torch.ones(len(batch)) / total.cpu(), torch.ones(len(batch)) / lists], -1)
        return batch.replace(share=share.to(batch.mask.device))

    def __call__(self, outputs: Outputs, batch: Rollouts) -> Loss:
        order = ranked_rows(batch)
        labels, scores = batch.scores["reward"][order], self.score(outputs, batch)[order]
        share, mean = batch.share[order[:, 0]].unbind(-1)
        value = (share * self.loss(scores, labels)).sum()
        metrics = {"loss/policy": value.detach(), **self._metrics(outputs, batch, order, scores.detach(), mean)}
        for regularizer in self.regularizers:
            term = (mean * regularizer(outputs, batch, order)).sum()
            value = value + regularizer.coefficient * term
            metrics[f"loss/{regularizer.name}"] = term.detach()
        return Loss(value, metrics)

    def _metrics(
        self, outputs: Outputs, batch: Rollouts, order: Tensor, scores: Tensor, mean: Tensor
    ) -> dict[str, Tensor]:
        """Best against worst of each list: how often their implicit rewards are in the right order, the mean probability
        that is given to the order they are in, their difference, and log-probabilities where the policy has some."""
        margin = self.loss.beta * (scores[:, 0] - scores[:, -1])
        right = (margin > 0).float() + 0.5 * (margin == 0).float()
        found = {
            "preference/accuracy": (mean * right).sum(),
            "preference/confidence": (mean * margin.abs().sigmoid()).sum(),
            "preference/margin": (mean * margin).sum(),
        }
        if outputs.logp is not None:
            logp = (outputs.logp.detach() * batch.mask).sum(1)[order]
            found |= {"logp/chosen": (mean * logp[:, 0]).sum(), "logp/rejected": (mean * logp[:, -1]).sum()}
        return found
