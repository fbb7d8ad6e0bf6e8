"""The updates of an on-policy learner as compiled code, the critic's together with the policy's.

Small networks spend most of an update on the bookkeeping of single operations. PyTorch's compiler makes one piece of code of
loss, gradient and AdamW, which takes it some seconds for each shape of minibatch. Its results differ from those of single
operations in the last digits; a repeat is bit-identical.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from policyopt.learners.critic import LiveCritic, shared
from policyopt.learners.on_policy import OnPolicyLearner
from policyopt.learners.update import Optimizer
from policyopt.types import Clock, Loss, Rollouts

Seen: TypeAlias = tuple[Tensor, Tensor, Tensor]


def compile_updates(learner: Any) -> None:
    """From here on the updates of the policy are compiled code, and with them those of a critic on the same minibatches.

    Warns and leaves as they are: learners of any other class, whose updates may be of another kind; language models, whose
    batches have a new shape every time; and whatever the compiler can't do or isn't there for.
    """
    plain = type(learner) is OnPolicyLearner
    if not plain or hasattr(learner.policy, "extend"):
        what = "of a language model have a new shape each time" if plain else f"of {type(learner).__name__} are its own"
        warnings.warn(f"nothing is compiled: the updates {what}", stacklevel=2)
        return
    critic = learner.critic if _follows(learner) else None
    learner._update = update = CompiledUpdate(learner, critic)  # type: ignore[method-assign]
    if critic is not None:
        critic.train = update.finish  # type: ignore[method-assign]


def _follows(learner: OnPolicyLearner) -> bool:
    """Whether the critic learns from the policy's own minibatches."""
    method, critic = learner.method, learner.critic
    if critic is None or method.objective.whole_groups:
        return False
    epochs, count = critic.settings.epochs or method.epochs, critic.settings.minibatches or method.minibatches
    same = (epochs, count, critic.settings.batch) == (method.epochs, method.minibatches, "rollouts")
    return same and not critic.settings.credit


class CompiledUpdate:
    """``OnPolicyLearner._update`` as compiled code, which also updates the ``critic`` on the same minibatch, where there is
    one here. Minibatches that do not fit in one piece go the plain way; what can't be compiled is said once, in a warning.
    """

    def __init__(self, learner: OnPolicyLearner, critic: LiveCritic | None) -> None:
        self.learner, self.critic, self.plain = learner, critic, learner._update
        self.values: list[dict[str, Tensor | float]] = []  # of the critic's updates since ``finish``
        self.terms: list[tuple[Callable[[Any], Loss], Optimizer]] = [(self._policy, learner.optimizer)]
        if critic is not None:
            self.terms.append((self._critic, critic.optimizer))
        self.compiled: Callable[[Any, list[Tensor]], list[tuple[Loss, Seen]]] | None = None
        try:
            torch._dynamo.config.trace_autograd_ops = True  # type: ignore[attr-defined]  # gradients are in the graph
            one_piece: dict[str, Any] = {"fullgraph": True, "dynamic": False, "isolate_recompiles": True}
            self.compiled = torch.compile(self._whole, **one_piece)
        except Exception as error:  # a PyTorch without these
            self._give_up(error)

    def __call__(self, batches: dict[str, Rollouts], number: str) -> dict[str, Tensor | float]:
        """Raises NonFinite, weights untouched."""
        made = self._run(batches) if self.compiled is not None and self._undivided(batches) else None
        if made is None:
            metrics = self.plain(batches, number)
            if self.critic is not None:
                self.values.append(self.critic.update(batches["rollouts"], self.learner.clock, self.learner.limit))
            return metrics
        for (_, optimizer), (_, seen) in zip(self.terms, made, strict=True):
            optimizer.seen.append(seen)
            optimizer.check(self.learner.clock)
        self.values += [{"loss/value": loss.value} for loss, _ in made[1:]]
        loss, (_, norm, _) = made[0]
        return {**loss.metrics, "gradient/norm": norm}

    def finish(self, batches: Mapping[str, Rollouts], *_: Any) -> dict[str, Tensor | float]:
        """In the place of ``LiveCritic.train``: what it would say of the updates that were made beside the policy's."""
        assert self.critic is not None
        values, self.values = self.values, []
        return self.critic.summary(values, batches["rollouts"])

    def _undivided(self, batches: Mapping[str, Rollouts]) -> bool:
        objectives = self.learner.objectives.items()
        return all(
            len(self.learner._pieces(each, batches[name])) == 1 and not each.measures for name, each in objectives
        )

    def _run(self, batches: dict[str, Rollouts]) -> list[tuple[Loss, Seen]] | None:
        assert self.compiled is not None
        try:
            return self.compiled(batches, [rates(optimizer, self.learner.clock) for _, optimizer in self.terms])
        except Exception as error:  # whatever a compiler says; mistakes of the loss come up again without it
            self._give_up(error)
            return None

    def _whole(self, batches: dict[str, Rollouts], rates: list[Tensor]) -> list[tuple[Loss, Seen]]:
        """What is compiled."""
        made = []
        for (loss, optimizer), its in zip(self.terms, rates, strict=True):
            one = loss(batches)
            gradients = torch.autograd.grad(one.value, optimizer.parameters, allow_unused=True)
            value = one.value.detach()
            made.append((Loss(value, one.metrics), adamw(optimizer, gradients, value, its)))
        return made

    def _policy(self, batches: dict[str, Rollouts]) -> Loss:
        total = Loss(torch.zeros((), device=self.learner.policy.device))
        for name, objective in self.learner.objectives.items():
            batch = objective.prepare(batches[name])
            total += objective(self.learner.policy.evaluate(batch, objective.want()), batch)
        return total

    def _critic(self, batches: dict[str, Rollouts]) -> Loss:
        assert self.critic is not None
        return Loss(self.critic.loss(shared(batches["rollouts"])))

    def _give_up(self, error: Exception) -> None:
        self.compiled = None
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        warnings.warn(f"the updates are not compiled: {type(error).__name__}: {reason}", stacklevel=4)


def rates(optimizer: Optimizer, clock: Clock) -> Tensor:
    """What ``adamw`` needs of the present step, [3, parameters]: the learning rate, and what corrects the bias of the first
    and of the second moment."""
    rate, counts = optimizer.learning_rate * optimizer.settings.schedule(clock), optimizer.counts.tolist()
    corrections = ([1 - beta ** (count + 1) for count in counts] for beta in optimizer.settings.betas)
    return torch.tensor([[rate] * len(counts), *corrections], device=optimizer.counts.device)


@torch.no_grad()
def adamw(optimizer: Optimizer, gradients: Sequence[Tensor | None], loss: Tensor, rates: Tensor) -> Seen:
    """``Optimizer.attempt`` in operations that the compiler knows, on given gradients → (loss, norm, their sum)."""
    adam, (beta1, beta2) = optimizer.settings, optimizer.settings.betas
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
        rate, correct_m, correct_v = rates[:, i].unbind()
        change = m / correct_m / ((v / correct_v).sqrt() + adam.epsilon)
        moved = parameter * (1 - rate * adam.weight_decay) - rate * change
        for old, new in ((parameter, moved), (first, m), (second, v)):
            old.copy_(torch.where(finite, new, old))
    return loss, norm, total
