import pytest
import torch

from policyopt.models.engines import padded
from policyopt.models.language import LanguagePolicy, Sampling
from policyopt.models.padded import PaddedEngine
from policyopt.models.thoughts import (
    ContinuousThoughts,
    Dirichlet,
    Expected,
    GeometricMultiToken,
    MultiToken,
    dirichlet_logp,
)
from policyopt.models.tiny import character_tokenizer, tiny_model
from policyopt.types import Rollouts, generator

RULES = [
    Expected(),
    MultiToken(),
    MultiToken(tokens=1),
    GeometricMultiToken(tokens=2),
    Dirichlet(),
    Dirichlet(scale=5.0),
]


def policy(temperature=1.0):
    tokenizer = character_tokenizer()
    return LanguagePolicy(tiny_model(0, len(tokenizer), width=32, heads=2), tokenizer, temperature=temperature)


def thinking(rule, thoughts=3, temperature=1.0):
    return ContinuousThoughts(policy(temperature), thoughts=thoughts, rule=rule)


def rollouts(prompts, sampled):
    prompt, prompt_length = padded(prompts)
    repeat = sampled.samples
    return Rollouts(
        actions=sampled.actions,
        mask=torch.arange(sampled.actions.shape[1]) < sampled.length[:, None],
        length=sampled.length,
        group=torch.arange(len(prompts)).repeat_interleave(repeat),
        prompt=prompt.repeat_interleave(repeat, 0),
        prompt_length=prompt_length.repeat_interleave(repeat),
        batch_size=[len(sampled.length)],
    )


def sample(own, samples=4, steps=8, **options):
    prompts = own.encode(["3+4*2=", "1+1=", "9*9*9-1="])
    return prompts, own.extend(
        prompts, samples, Sampling(temperature=own.temperature), generator(0, "x"), max_new_tokens=steps, **options
    )


def test_ratio_of_two_tokens_is_the_root_of_the_product():
    new, old = torch.tensor([[0.6, 0.3, 0.1]]).log(), torch.tensor([[0.5, 0.3, 0.2]]).log()
    rule, drawn = GeometricMultiToken(tokens=2), torch.tensor([[0, 1]])
    assert float((rule.score(new, drawn) - rule.score(old, drawn)).exp()) == pytest.approx(1.095445, abs=1e-6)
    assert float(rule.log_density(new, drawn).exp()) == pytest.approx(0.18)
    for single in (MultiToken(tokens=1), GeometricMultiToken(tokens=1)):
        assert float(single.score(new, drawn[:, :1]).exp()) == pytest.approx(0.6)


def test_tempered_sampling_divides_logits_by_the_number_of_tokens():
    logits = torch.tensor([[0.7, 0.2, 0.1]]).log()
    assert MultiToken(tokens=3).sampled(logits).exp()[0].tolist() == pytest.approx([0.4584, 0.3019, 0.2396], abs=1e-4)


def test_tempered_ratio_is_the_plain_one_times_the_normalizers():
    new, old = torch.randn(2, 1, 7, generator=generator(0, "logits")).log_softmax(-1)
    drawn = torch.tensor([[1, 1, 4]])
    tempered = MultiToken(tokens=3).score(new, drawn) - MultiToken(tokens=3).score(old, drawn)
    plain = GeometricMultiToken(tokens=3).score(new, drawn) - GeometricMultiToken(tokens=3).score(old, drawn)
    normalizer = (old / 3).logsumexp(-1) - (new / 3).logsumexp(-1)
    torch.testing.assert_close(tempered, plain + 3 * normalizer)


def test_dirichlet_density():
    point = torch.tensor([[0.5, 0.3, 0.2]])
    new, old = torch.tensor([[2.0, 1.0, 1.0]]), torch.tensor([[1.5, 1.5, 1.0]])
    assert float(dirichlet_logp(point, new)) == pytest.approx(1.098612, abs=1e-6)
    assert float(dirichlet_logp(point, old)) == pytest.approx(1.084764, abs=1e-6)
    ratio = (dirichlet_logp(point, new) - dirichlet_logp(point, old)).exp()
    assert float(ratio) == pytest.approx(1.013945, abs=1e-6)
    assert float(dirichlet_logp(point, torch.ones(1, 3)).exp()) == pytest.approx(2.0)
    other = torch.distributions.Dirichlet(old).log_prob(point)
    torch.testing.assert_close(dirichlet_logp(point, old), other)
    wider = [torch.cat([x, torch.tensor([[y]])], -1) for x, y in ((point, 0.0), (old, 0.4))]
    torch.testing.assert_close(dirichlet_logp(*wider), other)  # an entry outside is no part of the density


def test_dirichlet_policy_scales_the_models_distribution():
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    point = torch.tensor([[0.5, 0.3, 0.2]])
    assert float(Dirichlet(scale=4.0).log_density(logits, point)) == pytest.approx(1.098612, abs=1e-6)


def test_dirichlet_leaves_out_what_is_too_unlikely():
    logits = torch.tensor([[0.6, 0.3995, 0.0005]]).log().expand(4000, -1)
    point = Dirichlet(scale=20.0).draw(logits, generator(0, "x"))
    assert (point[:, 2] == 0).all()
    torch.testing.assert_close(point.sum(-1), torch.ones(4000))
    assert float(point[:, 0].mean()) == pytest.approx(0.6 / 0.9995, abs=0.01)
    share = 0.6 / 0.9995
    assert float(point[:, 0].var()) == pytest.approx(share * (1 - share) / 21, rel=0.1)
    flat = torch.zeros(2, 5000)
    assert (Dirichlet().draw(flat, generator(0, "x")).sum(-1) == 1).all()


@pytest.mark.parametrize("tokens", [1, 2, 6])
def test_mean_embedding_is_unbiased_and_its_variance_falls_with_the_number_of_tokens(tokens):
    own = thinking(GeometricMultiToken(tokens=tokens))
    logits = torch.randn(1, len(own.tokenizer), generator=generator(0, "logits"))
    with torch.no_grad():
        fed = own.inputs(own.rule.draw(logits.expand(20_000, -1), generator(1, "draw")))
        table, share = own.embedding.weight, logits.softmax(-1)
        mean = (share @ table)[0]
        spread = (share @ (table - mean).square())[0]
    torch.testing.assert_close(fed.mean(0), mean, atol=0.003, rtol=0)
    assert float((fed.var(0) / spread).mean()) == pytest.approx(1 / tokens, rel=0.05)


def test_a_corner_is_fed_as_its_token():
    own = thinking(MultiToken())
    ids = torch.tensor([5, 17, 40])
    want = own.embedding(ids)
    for rule in RULES:
        torch.testing.assert_close(own.inputs(rule.token(ids, own.embedding.num_embeddings)), want)


def test_with_corners_everything_is_as_with_tokens():
    """One token a thought is ordinary sampling, and both ways to write it down are evaluated as a token policy does."""
    plain, own = policy(), thinking(MultiToken(tokens=1), thoughts=2)
    prompts, sampled = sample(plain)
    batch = rollouts(prompts, sampled)
    want = plain.evaluate(batch, ("logp", "entropy"))
    gradient = torch.autograd.grad(want.logp.sum(), plain.parameters())
    drawn = batch.replace(actions=batch.actions[..., None])
    found = own.evaluate(drawn, ("logp", "entropy", "distribution"))
    torch.testing.assert_close(found.logp, want.logp, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.entropy, want.entropy, atol=1e-5, rtol=1e-4)
    for a, b in zip(torch.autograd.grad(found.logp.sum(), own.parameters()), gradient, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    corners = torch.nn.functional.one_hot(batch.actions, len(own.tokenizer)).float()
    soft = own.evaluate(batch.replace(actions=corners), ("distribution",)).distribution
    torch.testing.assert_close((soft * corners).sum(-1) * batch.mask, want.logp, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_what_is_recorded_while_sampling_is_what_is_evaluated(rule, temperature):
    own = thinking(rule, temperature=temperature)
    prompts, sampled = sample(own)
    batch = rollouts(prompts, sampled)
    found = own.evaluate(batch, ("logp", "entropy"))
    torch.testing.assert_close(found.logp, sampled.old_logp, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.entropy, sampled.entropy, atol=1e-4, rtol=1e-4)
    own.engine = PaddedEngine(own.core)
    torch.testing.assert_close(own.evaluate(batch).logp, found.logp, atol=1e-4, rtol=1e-4)
    _, again = sample(own)
    torch.testing.assert_close(own.evaluate(rollouts(prompts, again)).logp, again.old_logp, atol=1e-4, rtol=1e-4)


def test_behaviour_is_the_density_that_was_sampled():
    prompts, sampled = sample(thinking(GeometricMultiToken(tokens=2)))
    torch.testing.assert_close(sampled.behaviour_logp[:, :3], 2 * sampled.old_logp[:, :3])
    torch.testing.assert_close(sampled.behaviour_logp[:, 3:], sampled.old_logp[:, 3:])
    assert len(prompts) == 3


def test_thoughts_never_end_a_response_and_are_no_part_of_its_text():
    own = thinking(MultiToken())
    everything = "".join(chr(c) for c in range(32, 127))
    _, sampled = sample(own, samples=20, stop=tuple(everything))
    assert int(sampled.length.min()) == 4
    drawn = [row[3:length, 0] for row, length in zip(sampled.actions, sampled.length.tolist(), strict=True)]
    assert own.decode(sampled.actions, sampled.length) == own.tokenizer.batch_decode(drawn, skip_special_tokens=True)
    assert own.decode(sampled.actions[:, :2], sampled.length.clamp(max=2)) == [""] * 60


def test_a_frozen_copy_thinks_alike():
    own = thinking(MultiToken())
    prompts, sampled = sample(own)
    batch = rollouts(prompts, sampled)
    copy = own.frozen_copy()
    torch.testing.assert_close(copy.evaluate(batch).logp, own.evaluate(batch).logp)
    assert not copy.parameters()


def test_bad_input():
    for make in (lambda: MultiToken(tokens=0), lambda: Dirichlet(scale=0.0), lambda: Dirichlet(floor=1.0)):
        with pytest.raises(ValueError, match="needs"):
            make()
    with pytest.raises(ValueError, match="at least one thought"):
        thinking(MultiToken(), thoughts=0)
    scaled = policy()

    class Scaled(torch.nn.Embedding):
        pass

    scaled.core.set_input_embeddings(Scaled(*scaled.head.weight.shape))
    with pytest.raises(ValueError, match="plain embedding layer"):
        ContinuousThoughts(scaled, thoughts=1, rule=Expected())
