"""The fast path of tiny decoders against PyTorch's autograd."""

import contextlib
import json
import shutil

import numpy as np
import pytest
import torch

import vitwarm.trunk.decoder
from vitwarm.errors import Interrupted
from vitwarm.recipe import load_recipe
from vitwarm.run import run
from vitwarm.training.loop import Training
from vitwarm.training.meters import forward_flops
from vitwarm.trunk import build_decoder
from vitwarm.trunk.tiny import build, obstacle, tiny_loss

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")

VOCAB, POSITIONS = 29, 21


def decoder(size="2_4_16", seed=0, **more):
    """One whose every tensor matters, and whose attention is far from even."""
    model = build_decoder(size, VOCAB, POSITIONS, "test", seed=seed, **more)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.4)
    return model


def batch(rows, length, asked, seed=0):
    """Predictions at `asked` random places of each sequence, some of weight 0; at all, in order, under None."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB, (rows, length), generator=generator)
    positions = None
    if asked is not None:
        positions = torch.rand(rows, length, generator=generator).argsort(1)[:, :asked]
    shape = tokens.shape if positions is None else positions.shape
    targets = torch.randint(VOCAB, shape, generator=generator)
    weights = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.6)
    weights[0] = 0  # a sequence without predictions
    return tokens, targets, weights, positions


def in_pytorch(model, tokens, targets, weights, positions):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vitwarm.trunk.decoder, "tiny_loss", lambda *_: None)
        return model.loss(tokens, targets, weights, positions=positions)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("size", "tied", "rows", "length", "asked"),
    [
        ("2_4_16", False, 37, 21, 2),
        ("2_4_16", True, 16, 13, None),
        ("1_4_16", True, 1, 1, None),
        ("3_4_16", False, 20, 9, 4),
        ("2_2_10", False, 19, 11, 3),  # tiles that do not divide the width
        ("1_2_10", True, 33, 6, None),
    ],
)
def test_loss_and_gradients_are_pytorchs(size, tied, rows, length, asked):
    model, data = decoder(size, tied=tied), batch(rows, length, asked)
    found, expected = tiny_loss(model, *data), in_pytorch(model, *data)
    torch.testing.assert_close(found, expected)
    grads = gradients(model, 0.3 * expected.loss)
    for name, grad in gradients(model, 0.3 * found.loss).items():
        torch.testing.assert_close(grad, grads[name], atol=2e-6 * float(grads[name].abs().max()) + 1e-7, rtol=1e-4)
    with torch.no_grad():
        assert torch.equal(tiny_loss(model, *data).loss, found.loss)


def test_what_vanishes_beside_one_is_zero_and_no_subnormal_number():
    """Of softmax and GELU under large weights, which a solved task leaves; subnormal numbers take very long."""
    model, data = decoder("2_4_16", tied=False), batch(33, 21, 2)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight[:32].mul_(10)
            block.mlp.fc1.weight.mul_(10)
        model.head.weight.mul_(10)
    found, expected = tiny_loss(model, *data), in_pytorch(model, *data)
    torch.testing.assert_close(found, expected)
    grads, tiny = gradients(model, expected.loss), torch.finfo(torch.float32).tiny
    for name, grad in gradients(model, found.loss).items():
        assert not ((grad != 0) & (grad.abs() < tiny)).any()
        torch.testing.assert_close(grad, grads[name], atol=1e-4 * float(grads[name].abs().max()), rtol=1e-2)


def mixed(x):
    """splitmix64 of uint64 numbers."""
    with np.errstate(over="ignore"):
        x = np.asarray(x, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def kept(rate, seed, place, sequences, elements):
    """What dropout multiplies by, (B, ...) for elements (...): 0, or 1 / (1 - rate)."""
    key = mixed(mixed(np.uint64(seed) ^ mixed(place)) ^ np.arange(sequences, dtype=np.uint64))
    before, after = (k.astype(np.uint32).reshape(-1, *[1] * elements.ndim) for k in (key, key >> np.uint64(32)))
    h = before ^ elements.astype(np.uint32)
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B) + after
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)
    h ^= h >> np.uint32(15)
    return torch.from_numpy((h >= np.uint32(rate * 2**32)) / (1 - rate)).float()


def loss_under_masks(model, tokens, targets, weights, positions, rate, seed):
    """The decoder's loss, written out, with the masks of a seed."""
    (rows, length), width, heads = tokens.shape, model.size.width, model.size.heads
    i, j = np.indices((length, length))
    pairs = (i * (i + 1) // 2 + j) * heads + np.arange(heads)[:, None, None]
    causal = torch.ones(length, length).tril().bool()

    channels = np.arange(length * width).reshape(length, width)

    def drop(x, place, elements=channels):
        return x * kept(rate, seed, place, rows, elements)

    x = drop(model.token_embed(tokens) + model.pos_embed.weight[:length], 0)
    for n, block in enumerate(model.blocks):
        q, k, v = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.mT / (width // heads) ** 0.5).masked_fill(~causal, -torch.inf)
        attended = drop(scores.softmax(-1), 3 * n + 1, pairs) @ v
        x = x + drop(block.attn.proj(attended.transpose(1, 2).flatten(2)), 3 * n + 2)
        x = x + drop(block.mlp.fc2(block.mlp.act(block.mlp.fc1(block.norm2(x)))), 3 * n + 3)
    x = model.norm(x).gather(1, positions[..., None].expand(-1, -1, width))
    each = torch.nn.functional.cross_entropy(model.logits(x).mT, targets, reduction="none")
    return (each * weights).sum()


def test_dropout_has_the_masks_of_its_seed(seed=5, rate=0.3):
    """Loss and gradients under the masks that NumPy computes for the seed, which is drawn from torch's generator."""
    model, data = decoder(tied=False, dropout=rate), batch(23, 12, 4)
    torch.manual_seed(seed)
    found = tiny_loss(model, *data).loss
    other = tiny_loss(model, *data).loss
    torch.manual_seed(seed)
    expected = loss_under_masks(model, *data, rate, int(torch.randint(2**63 - 1, ())))
    assert abs(other - found) > 1e-3 * found
    torch.testing.assert_close(found, expected)
    grads = gradients(model, expected)
    for name, grad in gradients(model, found).items():
        torch.testing.assert_close(grad, grads[name], atol=4e-6 * float(grads[name].abs().max()), rtol=1e-4)
    torch.testing.assert_close(tiny_loss(model.eval(), *data), in_pytorch(model, *data))


def test_masks_are_fair_and_independent():
    """Shares of kept elements, of sequences, of places, of pairs of neighbours, to four standard errors."""
    drawn = np.stack([kept(0.3, 11, place, 64, np.arange(512)).numpy() > 0 for place in range(8)])
    for pair in (drawn, *(drawn[a] == drawn[b] for a, b in ((slice(1, None), slice(-1)),))):
        share = 0.7 if pair is drawn else 0.7**2 + 0.3**2
        assert abs(pair.mean() - share) < 4 * (share * (1 - share) / pair.size) ** 0.5
    for axis in (1, 2):
        same = np.diff(drawn.astype(int), axis=axis) == 0
        assert abs(same.mean() - 0.58) < 4 * (1 / same.size) ** 0.5
    assert abs(drawn.mean((0, 2)) - 0.7).max() < 4.5 * (0.21 / 4096) ** 0.5


@pytest.mark.parametrize("groups", [["attn"], ["mlp"], ["embed", "blocks.0"], ["norm", "head"]])
def test_frozen_tensors_get_no_gradient_and_the_others_theirs(groups):
    model, data = decoder(tied=False), batch(18, 10, 2)
    expected = gradients(model, tiny_loss(model, *data).loss)
    for name, p in model.named_parameters():
        p.requires_grad_(not any(group in name for group in groups))
    for name, grad in gradients(model, tiny_loss(model, *data).loss).items():
        frozen = any(group in name for group in groups)
        assert grad is None if frozen else torch.equal(grad, expected[name]), name


def test_gradients_add_up_over_micro_batches_and_backward_passes():
    model, data = decoder(tied=True), batch(20, 9, 2)
    whole = gradients(model, tiny_loss(model, *data).loss)
    halves = sum(tiny_loss(model, *(t[part] for t in data)).loss for part in (slice(7), slice(7, None)))
    for name, grad in gradients(model, halves).items():
        torch.testing.assert_close(grad, whole[name], atol=2e-6 * float(whole[name].abs().max()), rtol=1e-4)


def test_the_block_in_the_middle_may_run_several_times():
    model, data = decoder("3_4_16", middle_runs=3), batch(9, 11, 2)
    expected = gradients(model, in_pytorch(model, *data).loss)
    for name, grad in gradients(model, tiny_loss(model, *data).loss).items():
        torch.testing.assert_close(grad, expected[name], atol=4e-6 * float(expected[name].abs().max()), rtol=1e-4)


def test_lanes_of_other_processors_give_the_same(monkeypatch):
    """Vectors of 4 and of 8, as on machines with narrower registers, and this machine's own."""
    model, data = decoder(dropout=0.2), batch(21, 8, 2)
    found, flags = [], build.FLAGS
    for lanes in ("-DLANES=4", "-DLANES=8", None):
        build.library.cache_clear()
        monkeypatch.setattr(build, "FLAGS", (*flags, "-O1", lanes) if lanes else flags)
        torch.manual_seed(0)
        loss = tiny_loss(model, *data).loss
        found.append((loss, gradients(model, loss)))
    for loss, grads in found[1:]:
        torch.testing.assert_close(loss, found[0][0])
        for name, grad in grads.items():
            torch.testing.assert_close(grad, found[0][1][name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("bad", "at"), [("token", (0, 0)), ("target", (1, 0)), ("position", (3, 0))], ids=["token", "target", "position"]
)
@pytest.mark.parametrize("value", [-1, VOCAB])
def test_ids_and_places_out_of_range_are_refused(bad, at, value):
    model, data = decoder(), batch(4, 9, 2)
    data[2][:] = 1
    data[at[0]][2, at[1]] = value
    with pytest.raises(IndexError, match="out of range"):
        tiny_loss(model, *data)


def test_ids_behind_the_last_prediction_are_looked_at_too():
    """They change nothing, and PyTorch refuses them all the same."""
    model, data = decoder(), batch(4, 9, 2)
    data[2].zero_()
    data[0][1, -1] = VOCAB
    with pytest.raises(IndexError, match="out of range"):
        tiny_loss(model, *data)


# When it applies


def test_it_is_what_the_decoder_takes():
    assert obstacle(decoder()) is None
    model, data = decoder(), batch(5, 8, 2)
    assert torch.equal(model.loss(*data[:3], positions=data[3]).loss, tiny_loss(model, *data).loss)
    assert model.loss_path() == "losses in compiled code for tiny decoders (vitwarm.trunk.tiny)"


def test_obstacles(monkeypatch):
    """Each has its words, and then the decoder computes the loss in PyTorch."""

    def compiled(model):
        model.blocks[0].compile(backend="eager")
        return model

    for model, why in (
        (build_decoder("1_1_4", VOCAB, POSITIONS, "test", seed=0), "width 4 is not 8 to 64"),
        (build_decoder("1_1_65", VOCAB, POSITIONS, "test", seed=0), "width 65 is not 8 to 64"),
        (build_decoder("1_4_16", 1025, POSITIONS, "test", seed=0), "1025 symbols are more than 1024"),
        (decoder().double(), "the weights are not float32 on a CPU"),
        (compiled(decoder()), "the blocks are compiled"),
    ):
        assert obstacle(model) == why and model.loss_path() == f"losses in PyTorch ({why})"
        assert tiny_loss(model, *batch(3, 5, 2)) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert obstacle(decoder()) == "mixed precision"
    for compiler, why in (
        ("no-such-compiler", "no C++ compiler 'no-such-compiler': No such file or directory"),
        (build.__file__, f"no C++ compiler {build.__file__!r}: Permission denied"),
        ("c++ 'x", "CXX=c++ 'x: No closing quotation"),
        ("false", "false fails: exit code 1"),
    ):
        monkeypatch.setenv("CXX", compiler)
        build._compiler.cache_clear()
        build.library.cache_clear()
        assert obstacle(decoder()) == why
    build._compiler.cache_clear()
    build.library.cache_clear()


def hooked(model):
    model.blocks[0].mlp.register_forward_hook(lambda *_: None)


def another_forward(model):
    model.blocks[1].forward = lambda x, **_: x


def one_evaluates(model):
    model.blocks[1].eval()


def other_rate(model):
    model.embed_drop.p = 0.9


def other_activation(model):
    model.blocks[0].mlp.act = torch.nn.ReLU()


def shared(model):
    model.blocks[1] = model.blocks[0]


def parametrized(model):
    torch.nn.utils.parametrizations.weight_norm(model.blocks[0].mlp.fc1)


def other_head(model):
    model.head.weight = torch.nn.Parameter(torch.zeros(VOCAB - 1, 16))


def other_eps(model):
    model.blocks[1].norm2.eps = 0.1


def other_heads(model):
    model.blocks[0].attn.num_heads = 2


def renormalised(model):
    model.token_embed.max_norm = 0.1


def other_features(model):
    model.features = lambda x, *_: x


@pytest.mark.parametrize(
    "change",
    [
        *(hooked, another_forward, one_evaluates, other_rate, other_activation, shared, parametrized, other_head),
        *(other_eps, other_heads, renormalised, other_features),
    ],
)
def test_a_decoder_that_was_changed_runs_in_pytorch(change):
    model, data = decoder(tied=False, dropout=0.1), batch(5, 8, 2)
    assert tiny_loss(model, *data) is not None
    change(model)
    assert obstacle(model) == "its modules, their hooks or modes are not those of a decoder as it is built"
    assert tiny_loss(model, *data) is None


def test_a_class_of_someone_else_runs_in_pytorch():
    class Other(vitwarm.trunk.decoder.Decoder):
        """Perhaps with an `embed` of its own."""

    assert tiny_loss(Other("1_2_10", VOCAB, POSITIONS), *batch(5, 8, 2)) is None


def test_what_pytorch_would_refuse_goes_to_pytorch():
    model, (tokens, targets, weights, positions) = decoder(), batch(5, 8, 2)
    for data in (
        (tokens, targets[:2], weights, positions),
        (tokens, targets, weights[:, :1], positions),
        (tokens, targets, weights[:, 0], positions),
        (tokens, targets, weights, positions[:4]),
        (tokens, targets, weights, None),
        (tokens[0], targets, weights, positions),
        (tokens.float(), targets, weights, positions),
        (tokens.to("meta"), targets.to("meta"), weights, positions),
        (tokens, targets, weights.requires_grad_(), positions),
    ):
        assert tiny_loss(model, *data) is None
    in_pytorch(model, tokens, targets, weights, positions).loss.backward()
    assert weights.grad is not None


def test_ignored_targets_count_nothing_on_every_path():
    model, (tokens, targets, weights, positions) = decoder(), batch(5, 8, 2)
    ignored = torch.rand(targets.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    expected = tiny_loss(model, tokens, targets, weights * ~ignored, positions)
    data = tokens, targets.masked_fill(ignored, -100), weights, positions
    for most in (model.max_logits, VOCAB):  # in one chunk, in many
        model.max_logits = most
        for found in (tiny_loss(model, *data), in_pytorch(model, *data)):
            torch.testing.assert_close(found, expected)


def test_what_is_not_finite_stays_so():
    for bad in (float("nan"), float("inf")):
        model = decoder()
        with torch.no_grad():
            model.blocks[0].mlp.fc1.weight[3, 2] = bad
        data = batch(20, 8, 2)
        loss = tiny_loss(model, *data).loss
        assert not loss.isfinite()
        assert not gradients(model, loss)["token_embed.weight"].isfinite().all()


def test_flops_are_counted_in_pytorch():
    model, data = decoder(), batch(5, 8, 2)
    assert forward_flops(lambda: model.loss(*data[:3], positions=data[3])) > 0


def test_a_run_is_reproduced_to_the_bit_and_resumes(tmp_path, monkeypatch):
    """Warm-up and task with dropout and a frozen group: whole, and cut and resumed on another number of threads."""

    def config(folder):
        return load_recipe(
            [
                "recipe=haystack_set",
                f"run.dir={tmp_path / folder}",
                "model.decoder.dropout=0.1",
                "warmup.budget=8 steps",
                "warmup.global_batch=8",
                "algorithmic.budget=8 steps",
                "algorithmic.val_rows=16",
                "train.global_batch=16",
                "train.lr_warmup=2 steps",
                "train.clip_grad=1.0",
                "train.freeze=[attention]",
            ]
        )

    def log(folder, event):
        lines = map(json.loads, (tmp_path / folder / "log.jsonl").read_text().splitlines())
        return [line for line in lines if line["event"] == event]

    run(config("whole"))
    monkeypatch.setattr(Training, "step", interrupted(Training.step, 5))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for _ in range(4):
            with contextlib.suppress(Interrupted):
                run(config("cut"))
    finally:
        torch.set_num_threads(threads)
    weights = [(tmp_path / folder / "export/model.safetensors").read_bytes() for folder in ("whole", "cut")]
    assert weights[0] == weights[1]
    assert [(e["stage"], e["step"]) for e in log("whole", "path")] == [("warmup", 0), ("algorithmic", 0)]
    paths = [e["path"] for e in log("cut", "path")]
    assert len(paths) > 2 and all("compiled code" in path for path in paths)  # one more for each start
    assert [e["loss"] for e in log("whole", "eval")] == [e["loss"] for e in log("cut", "eval")]


def interrupted(step, every):
    """`Training.step`, with a signal before each so many steps of the run."""

    def steps(self, batches):
        if (self.state.run_step + 1) % every == 0:
            self.context.stop.append(15)
        step(self, batches)

    return steps
