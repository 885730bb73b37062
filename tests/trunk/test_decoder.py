"""GPT-2 from timm's blocks: sizes, fresh weights, causality, the chunked loss, generation."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vitwarm.errors import UserError
from vitwarm.keys import keyed_rng
from vitwarm.trunk import Decoder, DecoderSize, build_decoder, generate

VOCAB, LENGTH = 131, 24


@pytest.fixture(autouse=True)
def in_pytorch(monkeypatch):
    """As of decoders of any size; the fast path of tiny ones is in test_tiny.py."""
    monkeypatch.setattr("vitwarm.trunk.decoder.tiny_loss", lambda *_: None)


def decoder(seed=0, **more):
    """A tiny one whose every tensor matters: no bias is 0, and logits are far from equal."""
    model = build_decoder("2_4_16", VOCAB, LENGTH, "test", seed=seed, **more)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.2)
    return model


def batch(rows=3, length=LENGTH, seed=1):
    generator = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(VOCAB, (2, rows, length), generator=generator)
    weights = (torch.rand(rows, length, generator=generator) < 0.6) * torch.rand(rows, length, generator=generator)
    return tokens, targets, weights


# Sizes and fresh weights


@pytest.mark.parametrize(
    ("size", "count"), [("12_12_768", 124_439_808), ("24_16_1024", 354_823_168), ("24_16_2048", 1_313_626_112)]
)
def test_parameter_counts_are_those_of_gpt2(size, count):
    """GPT-2's published counts of the small and the medium model; the last one from the formula."""
    depth, _, width = map(int, size.split("_"))
    assert count == 50257 * width + 1024 * width + depth * (12 * width**2 + 13 * width) + 2 * width
    with torch.device("meta"):
        model = Decoder(size, 50257, 1024)
        untied = Decoder(size, 50257, 1024, tied=False)
    assert sum(p.numel() for p in model.parameters()) == count
    assert sum(p.numel() for p in untied.parameters()) == count + 50257 * width


@pytest.mark.parametrize("text", ["", "12_12", "12_12_768_1", "a_b_c", "0_1_8", "2_-4_16", "2_4_1.6", "gpt2", "²_4_16"])
def test_malformed_sizes_are_refused(text):
    with pytest.raises(UserError, match="DEPTH_HEADS_WIDTH") as caught:
        DecoderSize.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"vocab_size": 0}, {"n_positions": 0}, {"n_positions": 2.5}, {"vocab_size": True}])
def test_no_tokens_or_positions_are_refused(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))} is .*; give a whole number from 1 on"):
        Decoder("1_1_4", **{"vocab_size": 3, "n_positions": 3} | wrong)


@pytest.mark.parametrize("text", ["1001_1_1", "1_1_1000000000", "1_1_" + "9" * 5000])
def test_sizes_beyond_all_memory_are_refused(text):
    with pytest.raises(UserError, match="no more than 1000 blocks, and numbers below a billion"):
        DecoderSize.parse(text)


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match="3 heads do not divide width 16; take 18"):
        Decoder("2_3_16", VOCAB, LENGTH)
    assert str(DecoderSize.parse("4_8_512")) == "4_8_512"


def test_fresh_weights_follow_gpt2():
    model = build_decoder("6_4_64", 500, 200, "test", seed=3, tied=False)
    for name, p in model.named_parameters():
        if p.ndim == 1:
            assert torch.equal(p, torch.ones_like(p) if "norm" in name and "weight" in name else torch.zeros_like(p))
            continue
        std = 0.02 / math.sqrt(12) if name.endswith(("attn.proj.weight", "mlp.fc2.weight")) else 0.02
        error = 4 * std / math.sqrt(2 * p.numel())  # four standard errors of a Gaussian's deviation
        assert abs(p.std().item() - std) < error and abs(p.mean().item()) < 4 * std / math.sqrt(p.numel()), name


def test_fresh_weights_depend_on_seed_and_key_alone():
    before = torch.random.get_rng_state()
    first = build_decoder("2_4_16", VOCAB, LENGTH, "a", seed=0).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    again = build_decoder("2_4_16", VOCAB, LENGTH, "a", seed=0).state_dict()
    assert all(torch.equal(t, again[n]) for n, t in first.items())
    for key, seed in (("a", 1), ("b", 0)):
        other = build_decoder("2_4_16", VOCAB, LENGTH, key, seed=seed)
        assert not torch.equal(other.blocks[0].attn.qkv.weight, first["blocks.0.attn.qkv.weight"])


def test_the_tied_head_is_one_tensor():
    tied, untied = decoder(), decoder(tied=False)
    assert "head.weight" not in tied.state_dict() and "head.weight" in untied.state_dict()
    assert tied.head_weight is tied.token_embed.weight and untied.head_weight is not untied.token_embed.weight


# Forward


def test_causal_prefix():
    model = decoder().eval()
    tokens = batch()[0]
    full = model(tokens)
    assert full.shape == (3, LENGTH, VOCAB)
    torch.testing.assert_close(model(tokens[:, :9]), full[:, :9])
    other = tokens.clone()
    other[:, 12] += 1
    other %= VOCAB
    changed = (model(other) - full).abs().amax((0, 2)) > 1e-4
    assert not changed[:12].any() and changed[12:].all()


def test_documents_can_be_kept_apart():
    """With a block-diagonal mask, the second half does not see the first; positions go on."""
    model = decoder().eval()
    tokens = batch()[0]
    document = torch.arange(LENGTH) // 12
    mask = document[:, None] == document
    apart = model(tokens, attn_mask=mask)
    alone = model.logits(model.features(model.embed(tokens[:, 12:], start=12)))
    torch.testing.assert_close(apart[:, 12:], alone)
    assert not torch.allclose(model(tokens)[:, 12:], alone, atol=1e-2)


def test_too_long_a_sequence_is_refused():
    with pytest.raises(UserError, match="25 tokens do not fit the decoder's 24 positions"):
        decoder()(torch.zeros(1, LENGTH + 1, dtype=torch.long))


def test_dropout_stands_where_gpt2_has_it():
    """On the embeddings, on attention, before each residual sum; not inside the MLP, where timm would have it."""
    model = decoder(dropout=0.5).train()
    seen = {}
    model.blocks[0].mlp.fc1.register_forward_hook(lambda m, i, o: seen.update(hidden=o))
    model.blocks[0].mlp.fc2.register_forward_hook(lambda m, i, o: seen.update(into=i[0], out=o))
    model.blocks[0].mlp.register_forward_hook(lambda m, i, o: seen.update(left=o))
    tokens = batch(8)[0]
    model(tokens)
    assert torch.equal(seen["into"], F.gelu(seen["hidden"], approximate="tanh"))
    assert 0.4 < (seen["left"] == 0).float().mean() < 0.6
    assert 0.4 < (model.embed(tokens) == 0).float().mean() < 0.6
    attention = model.blocks[0].attn
    assert attention.attn_drop.p == attention.proj_drop.p == 0.5
    still = model.eval()(tokens)
    assert torch.equal(model(tokens), still)


# Loss


def plain(model, tokens, targets, weights):
    logits = model(tokens)
    each = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return (each * weights.flatten()).sum(), ((logits.argmax(-1) == targets) * weights).sum()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.fixture(params=[1, 64], ids=["unpadded", "padded"])
def align(request, monkeypatch):
    """What the vocabulary is padded to a multiple of."""
    monkeypatch.setattr("vitwarm.trunk.token_loss.ALIGN", request.param)
    return request.param


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [1, 8, 16, 64, 1000])  # the last ones: an uneven last chunk, and all in one
def test_chunks_change_neither_loss_nor_gradient(rows, tied, checkpointing, align):
    model = decoder(tied=tied, grad_checkpointing=checkpointing)
    tokens, targets, weights = batch()
    targets[:, 3] = tokens[:, 3]
    model.max_logits = rows * VOCAB
    found = model(tokens, targets, weights)
    loss, correct = plain(model, tokens, targets, weights)
    torch.testing.assert_close(found.loss, loss)
    torch.testing.assert_close(found.correct, correct)
    expected = gradients(model, 0.3 * loss)
    for name, grad in gradients(model, 0.3 * model.loss(tokens, targets, weights).loss).items():
        torch.testing.assert_close(grad, expected[name], atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(model.loss(tokens, targets, weights).loss, loss)
    every = model.loss(tokens, targets).loss
    torch.testing.assert_close(every, plain(model, tokens, targets, torch.ones_like(weights))[0])


def test_chunked_gradients_are_exact_in_double_precision(align):
    """Also where one logit outweighs all others by far more than an exponential can say."""
    model = decoder().double()
    tokens, targets, weights = batch()
    with torch.no_grad():
        model.token_embed.weight[:7] *= 300
    expected = gradients(model, F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="sum"))
    model.max_logits = 8 * VOCAB
    for name, grad in gradients(model, model.loss(tokens, targets).loss).items():
        torch.testing.assert_close(grad, expected[name], atol=1e-11, rtol=1e-11)


def test_chunked_gradients_under_autocast_are_as_good_as_plain_ones():
    """Both in bf16; the distance to the fp32 gradient is no larger over 96 chunks than in one piece."""
    model = decoder(tied=False)
    tokens, targets, weights = batch(32)
    exact = gradients(model, plain(model, tokens, targets, weights)[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        usual = gradients(model, plain(model, tokens, targets, weights)[0])
        model.max_logits = 8 * VOCAB
        chunked = gradients(model, model.loss(tokens, targets, weights).loss)
    for name, grad in exact.items():
        error, size = (chunked[name] - grad).norm(), grad.norm()
        assert error < 1.3 * (usual[name] - grad).norm() + 1e-3 * size and error < 0.05 * size, name


def test_a_second_backward_pass_is_refused_and_not_wrong():
    model = decoder()
    tokens, targets, weights = batch()
    model.max_logits = 8 * VOCAB
    loss = model.loss(tokens, targets, weights).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("rows", [5, 130], ids=["together", "sorted by length"])
def test_places_that_are_not_asked_are_not_computed_and_change_nothing(rows):
    """Loss, gradients and features of the asked places, against those of all; dropout has its masks as ever."""
    model = decoder(tied=False).train()
    tokens, targets, weights = batch(rows)
    positions = torch.rand(rows, LENGTH, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :3]
    targets, weights = targets[:, :3], weights[:, :3]
    weights[0] = 0
    everywhere = torch.zeros(rows, LENGTH).scatter(1, positions, weights)
    loss, correct = plain(model, tokens, torch.zeros(rows, LENGTH).long().scatter(1, positions, targets), everywhere)
    with FlopCounterMode(display=False) as flops:
        found = model.loss(tokens, targets, weights, positions=positions)
    with FlopCounterMode(display=False) as whole:
        model(tokens)
    assert flops.get_total_flops() < 0.8 * whole.get_total_flops()
    torch.testing.assert_close(found.loss, loss)
    torch.testing.assert_close(found.correct, correct)
    expected = gradients(model, loss)
    for name, grad in gradients(model, found.loss).items():
        torch.testing.assert_close(grad, expected[name], atol=2e-5, rtol=1e-4)
    dropping = decoder(dropout=0.3).train()
    torch.manual_seed(0)
    features = dropping.features(dropping.embed(tokens))
    torch.manual_seed(0)
    asked = dropping.features(dropping.embed(tokens), positions=positions)
    assert torch.equal(asked, features.gather(1, positions[..., None].expand(-1, -1, 16)))


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation inside makes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.parametrize("grad", [True, False])
def test_all_logits_are_never_there_at_once(grad, align):
    """GPT-2's vocabulary: the largest tensor of a training step is the token table, not (B * N, V)."""
    model = build_decoder("1_1_8", 50257, 64, "test", seed=0)
    model.max_logits = 2 * 50257
    tokens = torch.randint(50257, (4, 64), generator=torch.Generator().manual_seed(0))
    with LargestTensor() as count, torch.set_grad_enabled(grad):
        loss = model.loss(tokens, tokens).loss
        if grad:
            loss.backward()
    table = 8 * (50257 + (-50257 % align))
    assert count.largest == table < 256 * 50257 / 30
    with LargestTensor() as count:
        plain(model, tokens, tokens, torch.ones(4, 64))
    assert count.largest == 256 * 50257


def test_chunks_cost_no_further_matrix_products(align):
    """Nothing is recomputed: as many FLOPs as the plain loss, but for the padding of the vocabulary to 64."""
    model = build_decoder("2_4_16", 1000, LENGTH, "test", seed=0)
    tokens = torch.randint(1000, (4, LENGTH), generator=torch.Generator().manual_seed(0))

    def flops(loss):
        with FlopCounterMode(display=False) as counter:
            loss().backward()
        return counter.get_total_flops()

    usual = flops(lambda: plain(model, tokens, tokens, torch.ones(4, LENGTH))[0])
    model.max_logits = 16_000
    padding = 3 * 2 * (-1000 % align) * 16 * tokens.numel()
    assert flops(lambda: model.loss(tokens, tokens).loss) == usual + padding


def test_compiled_parts_keep_names_and_values():
    model = decoder()
    tokens, targets, weights = batch()
    model.max_logits = 16 * VOCAB
    names = list(model.state_dict())
    expected = model.loss(tokens, targets, weights)
    grads = gradients(model, expected.loss)
    for part in model.compile_parts():
        part.compile(backend="aot_eager")
    found = model.loss(tokens, targets, weights)
    torch.testing.assert_close(found, expected)
    for name, grad in gradients(model, found.loss).items():
        torch.testing.assert_close(grad, grads[name], atol=1e-5, rtol=1e-4)
    assert list(model.state_dict()) == names
    tokens = tokens[:, :5]
    assert torch.equal(generate(model, tokens, 6), generate(model, tokens, 6, cache=False))


def test_many_seeds_at_once():
    """A small batch takes a way that torch.func can stack: gradients of 3 models as of each alone."""
    models = [decoder(seed) for seed in range(3)]
    for block in models[0].blocks:
        block.attn.fused_attn = False  # torch's fused kernels would run one model after the other
    everything = torch.ones(LENGTH, LENGTH, dtype=torch.bool)  # and so would the causal mask that timm makes itself
    tokens, targets, weights = batch()
    stacked = {n: torch.stack([dict(m.named_parameters())[n].detach() for m in models]) for n in models[0].state_dict()}

    def loss(parameters):
        return torch.func.functional_call(models[0], parameters, (tokens, targets, weights, everything)).loss

    together = torch.func.vmap(torch.func.grad(loss))(stacked)
    for i, model in enumerate(models):
        for name, grad in gradients(model, model.loss(tokens, targets, weights).loss).items():
            torch.testing.assert_close(together[name][i], grad, atol=1e-5, rtol=1e-4)


# Generation


def test_the_smallest_temperature_takes_the_most_probable_token():
    model = build_decoder("1_2_8", 11, 16, seed=0).eval()
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(generate(model, tokens, 5, temperature=1e-40), generate(model, tokens, 5))


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 4}, {"temperature": 1.0, "top_k": 5}])
def test_the_cache_changes_nothing_and_runs_each_token_once(options):
    model = decoder(tied=False).train()  # a tied one soon repeats a token for ever
    tokens = batch()[0][:, :7]
    ran = []
    model.blocks[1].register_forward_hook(lambda m, i, o: ran.append(o.shape[1]))
    cached = generate(model, tokens, 15, **options)
    assert ran == [7] + 14 * [1] and model.training
    assert cached.shape == (3, 22) and torch.equal(cached[:, :7], tokens)
    assert torch.equal(cached, generate(model, tokens, 15, cache=False, **options))
    assert len(cached[:, 7:].unique()) > 5


def test_a_middle_that_runs_several_times_has_a_cache_for_each_time():
    model = build_decoder("3_2_8", 11, 16, seed=0, middle_runs=3).eval()
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(generate(model, tokens, 6), generate(model, tokens, 6, cache=False))


def test_without_fused_attention_there_is_no_cache():
    model, tokens = decoder(tied=False).eval(), batch()[0][:, :7]
    expected = generate(model, tokens, 15)
    for block in model.blocks:  # one after another, until none is left
        block.attn.fused_attn = False
        assert torch.equal(generate(model, tokens, 15), expected)


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": 0}])
def test_sampling_that_cannot_be_is_refused(options):
    model = build_decoder("1_2_8", 11, 16, seed=0)
    with pytest.raises(UserError, match=f"{next(iter(options))} is"):
        generate(model, torch.tensor([[1]]), 2, **options)
    with pytest.raises(UserError, match="top_k=3 has no effect at temperature 0"):
        generate(model, torch.tensor([[1]]), 2, top_k=3)


def test_greedy_takes_the_most_probable_token_each_time():
    model = decoder(tied=False).eval()
    tokens = generate(model, batch()[0][:, :4], 12)
    assert torch.equal(model(tokens).argmax(-1)[:, 3:-1], tokens[:, 4:])


def test_sampling_follows_the_softmax():
    """Frequencies over 4000 rows against softmax(logits / T) within top-k: chi-square."""
    stats = pytest.importorskip("scipy.stats")
    model = decoder(tied=False).eval()
    prompt = batch(1)[0][:, :4]
    new = generate(model, prompt.expand(4000, -1), 1, temperature=2.0, top_k=8, seed=1)[:, -1]
    logits = model(prompt)[0, -1]
    keep = logits.topk(8).indices
    expected = 4000 * (logits[keep] / 2.0).softmax(0).detach().double()
    counts = torch.stack([(new == k).sum() for k in keep]).double()
    assert counts.sum() == 4000
    assert stats.chisquare(counts, expected * 4000 / expected.sum()).pvalue > 1e-3


def test_a_tie_at_the_last_of_the_top_k_lets_no_more_in():
    model = decoder(tied=False).eval()
    torch.nn.init.zeros_(model.head.weight)  # all tokens are as probable
    prompt = batch(1)[0][:, :4].expand(500, -1)
    drawn = {k: generate(model, prompt, 1, temperature=1.0, top_k=k, seed=2)[:, -1].unique() for k in (1, 3)}
    assert {k: len(tokens) for k, tokens in drawn.items()} == {1: 1, 3: 3}


def test_sampling_is_keyed():
    model, tokens = decoder(tied=False), batch()[0][:, :4]
    first = generate(model, tokens, 10, temperature=1.0, seed=0)
    torch.manual_seed(keyed_rng(5).integers(99).item())
    assert torch.equal(generate(model, tokens, 10, temperature=1.0, seed=0), first)
    assert not torch.equal(generate(model, tokens, 10, temperature=1.0, seed=1), first)


def test_a_row_ends_at_the_stop_token():
    model = decoder(tied=False)
    tokens = batch()[0][:, :4]
    free = generate(model, tokens, 12)
    stop = free[0, 8].item()
    stopped = generate(model, tokens, 12, stop=stop)
    for row, other in zip(stopped.tolist(), free.tolist(), strict=True):
        at = other.index(stop, 4) if stop in other[4:] else len(other)
        assert row[: at + 1] == other[: at + 1][: len(row)] and set(row[at + 1 :]) <= {stop}
    assert generate(model, tokens[:1], 12, stop=stop).shape[1] == free[0].tolist().index(stop, 4) + 1


def test_modes_come_back_and_a_tiny_temperature_is_none():
    model, tokens = decoder().train(), batch()[0][:2, :5]
    model.blocks[1].eval()
    modes = [m.training for m in model.modules()]
    found = [generate(model, tokens, 4, temperature=t, seed=1) for t in (0, 1e-46, 1e-300)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert [m.training for m in model.modules()] == modes


def test_impossible_generation_is_refused():
    with pytest.raises(UserError, match="20 tokens of prompt and 5 new ones do not fit the decoder's 24 positions"):
        generate(decoder(), batch()[0][:, :20], 5)
    with pytest.raises(UserError, match="the prompt has no tokens"):
        generate(decoder(), torch.zeros(1, 0, dtype=torch.long), 5)
