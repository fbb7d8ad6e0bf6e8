"""The same sampler and forward on a GPU: agreement with the processor, and a training step."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from policyopt import registry
from policyopt.models.language import LanguagePolicy, Sampling
from policyopt.problems.language.arithmetic import Arithmetic
from policyopt.rollouts.language import respond, scored_rollouts
from policyopt.types import generator

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def on_gpu(policy: LanguagePolicy) -> LanguagePolicy:
    return LanguagePolicy(deepcopy(policy.model).cuda(), policy.tokenizer)


def test_sampler_and_forward_agree_with_the_processor(policy: LanguagePolicy, on_gpu: LanguagePolicy) -> None:
    problem = Arithmetic()
    sampled = respond(on_gpu, problem, range(6), 5, Sampling(), generator(0, "s", 0, "cuda"))
    batch = scored_rollouts(on_gpu, problem, range(6), sampled)
    again = on_gpu.evaluate(batch, ("logp", "entropy"))
    torch.testing.assert_close(batch.old_logp * batch.mask, again.logp, atol=2e-4, rtol=1e-3)
    here = policy.evaluate(batch.cpu(), ("logp", "entropy"))
    torch.testing.assert_close(here.logp, again.logp.cpu(), atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(here.entropy, again.entropy.cpu(), atol=2e-4, rtol=1e-3)


def test_cut_prefixes_are_reused(on_gpu: LanguagePolicy) -> None:
    out = on_gpu.extend(
        on_gpu.encode(["3+4*2=", "1+1="]), 3, Sampling(), generator(0, "s", 0, "cuda"), max_new_tokens=8, keep=True
    )
    cut = out.cut([0, 4], [2, 3])
    greedy = Sampling(temperature=0)
    kept = on_gpu.extend(cut, 1, greedy, generator(0, "g", 0, "cuda"), max_new_tokens=5)
    anew = on_gpu.extend(cut.tokens, 1, greedy, generator(0, "g", 0, "cuda"), max_new_tokens=5)
    torch.testing.assert_close(kept.old_logp, anew.old_logp, atol=2e-4, rtol=1e-3)
    assert kept.forward_tokens < anew.forward_tokens


@pytest.mark.parametrize("name", ["grpo", "grpo:kl", "ppo", "remax", "bnpo", "sft"])
def test_methods_step(on_gpu: LanguagePolicy, name: str) -> None:
    method = registry.method(name)
    method = replace(method, collector=replace(method.collector, prompts=8))
    learner = method.learner(Arithmetic(), on_gpu, seed=0)
    for _ in range(2):
        assert torch.isfinite(torch.tensor(float(learner.step()["gradient/norm"])))
