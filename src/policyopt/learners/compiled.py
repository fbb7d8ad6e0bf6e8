"""The updates of an on-policy learner as compiled code.

Small networks spend most of an update on the bookkeeping of single operations. PyTorch's compiler makes one piece of code of
loss, gradient and AdamW, which takes it some seconds for each shape of minibatch. Its results differ from those of single
operations in the last digits; a repeat is bit-identical.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from policyopt.learners.critic import LiveCritic, shared
from policyopt.learners.on_policy import OnPolicyLearner
from policyopt.learners.update import Optimizer
from policyopt.types import Clock, Loss, Rollouts

Rates: TypeAlias = tuple[Tensor, Tensor, Tensor]
Seen: TypeAlias = tuple[Tensor, Tensor, Tensor]


def compile_updates(learner: Any) -> None:
    """From here on the updates of policy and critic are compiled code.

    Warns and leaves as they are: learners and methods with updates of another kind, language models, whose batches have a
    new shape every time, and whatever the compiler can't do or isn't there for.
    """
    own = isinstance(learner, OnPolicyLearner) and type(learner)._update is OnPolicyLearner._update
    if not own or hasattr(learner.policy, "extend"):
        what = "of a language model have a new shape each time" if own else f"of {type(learner).__name__} are its own"
        warnings.warn(f"nothing is compiled: the updates {what}", stacklevel=2)
        return
    learner._update = PolicyUpdate(learner)  # type: ignore[method-assign]
    if learner.critic is not None:
        learner.critic.update = CriticUpdate(learner.critic)  # type: ignore[method-assign]


class PolicyUpdate:
    """``OnPolicyLearner._update`` on minibatches that fit in one piece."""

    def __init__(self, learner: OnPolicyLearner) -> None:
        self.learner, self.plain = learner, learner._update
        self.step = CompiledStep(self.loss, learner.optimizer, "the policy's updates")

    def loss(self, batches: dict[str, Rollouts]) -> Loss:
        total: Tensor | float = 0.0
        metrics: dict[str, Tensor] = {}
        for name, objective in self.learner.objectives.items():
            batch = objective.prepare(batches[name])
            one = objective(self.learner.policy.evaluate(batch, objective.want()), batch)
            total = total + one.value
            metrics |= {k: metrics[k] + v if k in metrics else v for k, v in one.metrics.items()}
        assert isinstance(total, Tensor)
        return Loss(total, metrics)

    def __call__(self, batches: dict[str, Rollouts], number: str) -> dict[str, Tensor | float]:
        objectives = self.learner.objectives.items()
        whole = all(
            len(self.learner._pieces(each, batches[name])) == 1 and not each.measures for name, each in objectives
        )
        made = self.step(batches, self.learner.clock) if whole else None
        return self.plain(batches, number) if made is None else {**made[0].metrics, "gradient/norm": made[1]}


class CriticUpdate:
    """``LiveCritic.update`` on minibatches that fit in one piece."""

    def __init__(self, critic: LiveCritic) -> None:
        self.critic, self.plain = critic, critic.update
        self.step = CompiledStep(self.loss, critic.optimizer, "the critic's updates")

    def loss(self, batch: Rollouts) -> Loss:
        return Loss(self.critic.loss(shared(batch)))

    def __call__(self, batch: Rollouts, clock: Clock, limit: int) -> dict[str, Tensor | float]:
        whole = len(self.critic.model.micro_batches(batch, limit)) == 1
        made = self.step(batch, clock) if whole else None
        return self.plain(batch, clock, limit) if made is None else {"loss/value": made[0].value}


class CompiledStep:
    """An optimizer step on a loss as compiled code. What can't be compiled is said once, in a warning."""

    def __init__(self, loss: Callable[[Any], Loss], optimizer: Optimizer, name: str) -> None:
        self.loss, self.optimizer, self.name = loss, optimizer, name
        self.compiled: Callable[[Any, Rates], tuple[Loss, Seen]] | None = None
        try:
            torch._dynamo.config.trace_autograd_ops = True  # type: ignore[attr-defined]  # gradients are in the graph
            one_piece: dict[str, Any] = {"fullgraph": True, "dynamic": False, "isolate_recompiles": True}
            self.compiled = torch.compile(self._whole, **one_piece)
        except Exception as error:  # a PyTorch without these
            self._give_up(error)

    def __call__(self, batch: Any, clock: Clock) -> tuple[Loss, Tensor] | None:
        """The detached loss with its metrics and the norm of the gradient; None where this isn't compiled.

        Raises NonFinite, weights untouched.
        """
        if self.compiled is None:
            return None
        try:
            loss, seen = self.compiled(batch, rates(self.optimizer, clock))
        except Exception as error:  # whatever a compiler says; mistakes of the loss come up again without it
            self._give_up(error)
            return None
        self.optimizer.seen.append(seen)
        self.optimizer.check(clock)
        return loss, seen[1]

    def _whole(self, batch: Any, rates: Rates) -> tuple[Loss, Seen]:
        loss = self.loss(batch)
        gradients = torch.autograd.grad(loss.value, self.optimizer.parameters, allow_unused=True)
        value = loss.value.detach()
        return Loss(value, loss.metrics), adamw(self.optimizer, gradients, value, rates)

    def _give_up(self, error: Exception) -> None:
        self.compiled = None
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        warnings.warn(f"{self.name} are not compiled: {type(error).__name__}: {reason}", stacklevel=4)


def rates(optimizer: Optimizer, clock: Clock) -> Rates:
    """What ``adamw`` needs of the present step: the learning rate, and of each parameter what corrects the bias of its first
    and of its second moment."""
    rate = torch.tensor(optimizer.learning_rate * optimizer.settings.schedule(clock), device=optimizer.counts.device)
    first, second = (1 - beta ** (optimizer.counts.double() + 1) for beta in optimizer.settings.betas)
    return rate, first.float(), second.float()


@torch.no_grad()
def adamw(optimizer: Optimizer, gradients: Sequence[Tensor | None], loss: Tensor, rates: Rates) -> Seen:
    """``Optimizer.attempt`` in operations that the compiler knows, on given gradients → (loss, norm, their sum)."""
    adam, (beta1, beta2), (rate, *corrections) = optimizer.settings, optimizer.settings.betas, rates
    norms = [torch.linalg.vector_norm(gradient) for gradient in gradients if gradient is not None]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    total = norm + loss
    finite = torch.isfinite(total)
    divisor = 1.0 if adam.gradient_clip is None else (norm / adam.gradient_clip).clamp(min=1.0)
    columns = zip(optimizer.parameters, gradients, *optimizer.state.values(), strict=True)
    for i, (parameter, gradient, first, second, count) in enumerate(columns):
        if gradient is None:
            continue
        count += finite
        g = gradient / divisor
        m, v = beta1 * first + (1 - beta1) * g, beta2 * second + (1 - beta2) * g.square()
        change = m / corrections[0][i] / ((v / corrections[1][i]).sqrt() + adam.epsilon)
        moved = parameter * (1 - rate * adam.weight_decay) - rate * change
        for old, new in ((parameter, moved), (first, m), (second, v)):
            old.copy_(torch.where(finite, new, old))
    return loss, norm, total
