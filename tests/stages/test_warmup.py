"""The warm-up stage as arXiv 2511.13945 describes it: rows, masking, frozen tables, prefix tokens, loss, groups."""

import math

import numpy as np
import pytest
import timm
import torch
from timm.layers import DiffAttention
from torch import nn

from vitwarm.config import Config, ModelConfig, WarmupConfig
from vitwarm.errors import UserError
from vitwarm.stages.batches import MaskedBatch
from vitwarm.stages.warmup import WarmupModel, WarmupStage, with_dropout
from vitwarm.trunk import SymbolStem
from vitwarm.trunk.stems import SCALE, position_table, token_table

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}  # 4 x 4 tokens


def stage(name="deit_tiny_patch16_224", arguments=VIT, rule=None, seed=0, **warmup):
    settings = {"rule": {"name": "dyck", **(rule or {})}, "budget": "4 steps", "lr_warmup": "1 steps", **warmup}
    model = ModelConfig(name=name, num_classes=5, args=dict(arguments))
    return WarmupStage(Config(seed=seed, model=model, warmup=WarmupConfig(**settings)), None)


@pytest.fixture(scope="module")
def faithful():
    """The paper's setting but for depth: k = 64, 14 x 14 tokens, width 192."""
    return stage("vit_tiny_patch16_224", {"depth": 1}, global_batch=256)


@pytest.fixture(scope="module")
def batch(faithful):
    return next(faithful.batches(0, 0, 1, 256))


# The sequences


def test_ids_and_rows(faithful):
    """K = 130: PAD, MASK, 64 openers, 64 closers at +64; 196 tokens, balanced, no padding."""
    assert faithful.rule.vocab.size == 130 and faithful.length == 196
    rows = faithful.streams.train.rows(0, 256).tokens
    assert rows.min() == 2 and rows.max() == 129
    assert ((rows < 66).sum(1) == 98).all()
    for row in rows[:32]:
        stack = []
        for token in row:
            if token < 66:
                stack.append(token)
            else:
                assert stack.pop() == token - 64
        assert not stack


def test_only_closers_are_masked_about_half_of_them(faithful, batch):
    """Compared with the unmasked stream, place by place."""
    rows = faithful.streams.train.rows(0, 256).tokens
    symbols = batch.tokens.numpy()
    hidden = symbols != rows
    assert (symbols[hidden] == 1).all() and (rows[hidden] >= 66).all()
    closers = 256 * 98
    assert abs(hidden.sum() - closers / 2) < 5 * math.sqrt(closers / 4)
    assert batch.weight == hidden.sum()


def test_positions_and_targets_are_the_masked_tokens(faithful, batch):
    """In row-major order, found here by walking over rows and columns."""
    rows = faithful.streams.train.rows(0, 256).tokens
    symbols = batch.tokens.tolist()
    expected = [(b, n, rows[b, n]) for b in range(256) for n in range(196) if symbols[b][n] == 1]
    assert batch.positions.tolist() == [b * 196 + n for b, n, _ in expected]
    assert batch.targets.tolist() == [token for _, _, token in expected]


def test_an_oracle_is_always_right(faithful, batch):
    symbols = batch.tokens.numpy()
    solved = faithful.rule.solve(symbols, symbols == 1)
    assert (solved.reshape(-1)[batch.positions] == batch.targets.numpy()).all()


def test_batches_are_fresh_at_every_step_and_the_same_however_they_are_cut():
    def rows(s, *cut, start=0):
        return torch.cat([b.tokens for b in s.batches(start, *cut)])

    s = stage(global_batch=16, rule={"k": 4})
    whole = rows(s, 0, 1, 16)
    assert len(whole) == 4 * 16 and len(np.unique(whole, axis=0)) > 60
    assert torch.equal(rows(s, 0, 1, 4), whole)
    assert torch.equal(rows(s, 0, 1, 8, start=2), whole[32:])
    halves = [rows(s, rank, 2, 4).reshape(4, 8, -1) for rank in (0, 1)]
    assert torch.equal(torch.cat(halves, dim=1).flatten(0, 1), whole)
    assert not (rows(stage(global_batch=16, rule={"k": 4}, seed=1), 0, 1, 16) == whole).all()


def test_micro_batches_ask_for_their_own_rows():
    s = stage(global_batch=16, rule={"k": 4})
    for b in s.batches(0, 0, 1, 4):
        assert (b.tokens.flatten()[b.positions] == 1).all()
        assert len(b.positions) == (b.tokens == 1).sum()


# A curriculum


def lengths(batch):
    return set((batch.tokens != 0).sum(1).tolist())


def test_a_curriculum_moves_on_with_what_was_measured():
    """Evaluated every 3 steps, which are 6 micro-batches; the thread that writes ahead may not pass an evaluation."""
    rule = {"name": "curriculum", "rule": {"name": "dyck", "k": 4}, "start": 4, "step": 2, "threshold": 0.9}
    s = stage(global_batch=8, rule=rule, eval_every=3, budget="12 steps")
    assert s.adapts and s.length == 16
    found = []
    for i, batch in enumerate(s.batches(0, 0, 1, 4), start=1):
        found.append(lengths(batch))
        if i % 6 == 0:
            right = 95.0 if i != 12 else 89.0
            metrics = s.metrics({"correct": right, "loss": 1.0, "weight": 100.0})
            s.follow(metrics)
            assert metrics["level"] == s.rule.level
    assert found == [{4}] * 6 + [{6}] * 12 + [{8}] * 6
    assert lengths(s.batch("validation", 0, 64)) == {10}
    for accuracy in (1.0,) * 9:
        s.follow(s.metrics({"correct": accuracy, "weight": 1.0}))
    assert s.rule.level == 6 and lengths(s.batch("train", 0, 8)) == {16}  # the row is full


def test_a_curriculum_goes_on_with_the_same_rows():
    rule = {"name": "curriculum", "rule": {"name": "dyck", "k": 4}, "start": 4}
    first, again = (stage(global_batch=8, rule=rule, eval_every=2, budget="6 steps") for _ in range(2))
    rows = first.batches(0, 0, 1, 8)
    next(rows), next(rows)
    first.follow({"level": 2})
    second = [next(rows).tokens, next(rows).tokens]
    again.follow({"level": 2})
    assert torch.equal(next(again.batches(2, 0, 1, 8)).tokens, second[0])
    assert torch.equal(next(again.batches(3, 0, 1, 8)).tokens, second[1])


# The frozen tables


def test_token_table_is_the_scaled_identity_while_it_fits():
    assert torch.equal(token_table(130, 192, seed=3), 0.02 * torch.eye(192)[:130])
    assert torch.equal(token_table(192, 192, seed=3), 0.02 * torch.eye(192))


@pytest.mark.parametrize(("vocab", "width"), [(130, 64), (130, 129), (96, 48), (1000, 48)])
def test_token_table_is_as_orthogonal_as_more_rows_than_dimensions_can_be(vocab, width):
    """Unit rows U: the frame potential ||U U^T||^2 is at least K^2 / D (Benedetto & Fickus 2003)."""
    table = token_table(vocab, width, seed=0).double() / SCALE
    gram = table @ table.T
    torch.testing.assert_close(gram.diagonal(), torch.ones(vocab).double(), atol=1e-6, rtol=0)
    for first in range(0, vocab, width):  # bases
        inner = gram[first : first + width, first : first + width]
        torch.testing.assert_close(inner, torch.eye(len(inner)).double(), atol=1e-6, rtol=0)
    least = vocab**2 / width
    rest = vocab % width
    assert gram.square().sum() == pytest.approx(least + rest - rest**2 / width, rel=1e-6)
    assert (gram - torch.eye(vocab)).abs().max() < 0.75  # no two symbols look alike
    assert not torch.equal(token_table(vocab, width, seed=1), token_table(vocab, width, seed=0))


def test_position_table_has_rows_of_norm_002_without_preferred_direction():
    table = position_table(4096, 16, seed=0).double() / SCALE
    torch.testing.assert_close(table.norm(dim=1), torch.ones(4096).double(), atol=1e-6, rtol=0)
    assert table.mean(0).abs().max() < 5 / math.sqrt(16 * 4096)
    # second moments of a uniform direction in D dimensions: 1 / D on the diagonal
    torch.testing.assert_close(table.T @ table / 4096, torch.eye(16).double() / 16, atol=0.006, rtol=0)
    assert torch.equal(position_table(8, 4, seed=2), position_table(8, 4, seed=2))
    assert not torch.equal(position_table(8, 4, seed=2), position_table(8, 4, seed=3))


def test_tables_are_neither_trained_nor_saved():
    model = stage().model
    tables = [model.stem.tokens, model.stem.positions]
    assert all(not t.requires_grad for t in tables)
    held = {p.data_ptr() for p in model.parameters()} | {t.data_ptr() for t in model.state_dict().values()}
    assert not held & {t.data_ptr() for t in tables}


# Stem, trunk and head


def test_stem_adds_symbol_and_position_behind_prefix_tokens_that_have_none():
    vit = timm.create_model("vit_medium_patch16_reg4_gap_256", **VIT, class_token=True)
    nn.init.normal_(vit.cls_token)
    stem = SymbolStem(vit, 10, 6, seed=0)
    symbols = torch.tensor([[2, 3, 1, 5, 9, 0], [0, 0, 4, 4, 7, 1]])
    x = stem(symbols)
    prefix = torch.cat([vit.cls_token, vit.reg_token], dim=1)
    assert x.shape == (2, 5 + 6, 48)
    assert torch.equal(x[:, :5], prefix.expand(2, -1, -1))
    for b in range(2):
        for n in range(6):
            assert torch.equal(x[b, 5 + n], stem.tokens[symbols[b, n]] + stem.positions[n])


@pytest.mark.parametrize(
    ("name", "more", "prefix"),
    [
        ("vit_base_patch16_224", {}, 1),
        ("vit_base_patch16_224", {"class_token": False, "global_pool": "avg"}, 0),
        ("vit_medium_patch16_reg4_gap_256", {}, 4),
        ("deit_tiny_distilled_patch16_224", {}, 2),
        ("vit_base_patch16_siglip_224", {}, 0),
        ("vit_base_patch16_clip_224", {}, 1),
        ("eva02_tiny_patch14_224", {"img_size": 28, "patch_size": 7}, 1),
        ("vit_small_patch16_dinov3", {}, 5),
        ("vit_base_patch16_rope_mixed_224", {}, 1),
        ("deit3_small_patch16_224", {}, 1),
        ("beit_base_patch16_224", {}, 1),
        ("beitv2_base_patch16_224", {"use_shared_rel_pos_bias": True}, 1),
        ("vit_relpos_base_patch16_224", {}, 0),
        ("vit_srelpos_small_patch16_224", {"class_token": True}, 1),
    ],
)
def test_every_family_learns_from_masked_tokens(name, more, prefix):
    """K = 130 > D = 48. Trunk, prefix and head move; patch embedding, positions of any kind and classifier do not."""
    s = stage(name, VIT | more, global_batch=8)
    assert s.model.stem.num_prefix_tokens == s.vit.num_prefix_tokens == prefix
    assert s.tokens_per_sample == prefix + 16
    b = next(s.batches(0, 0, 1, 8))
    before = {n: t.clone() for n, t in s.vit.state_dict().items()}
    loss = s.losses(s.model, b, 0).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in s.model.parameters())
    trained = {p.data_ptr() for p in s.model.parameters()}
    assert sum(p.grad.abs().sum() > 0 for p in s.model.parameters()) > 0.8 * len(trained)
    torch.optim.AdamW(s.parameter_groups(), lr=0.1).step()
    for tensor, value in s.vit.state_dict().items():
        inside = tensor.startswith(("blocks.", "norm.", "fc_norm.", "norm_pre.")) and ".rel" not in tensor
        assert torch.equal(value, before[tensor]) == (not inside), tensor


def test_logits_are_those_of_the_masked_symbols_in_a_plain_computation():
    """Blocks one after the other as timm writes them; prefix outputs are not read."""
    s = stage("vit_medium_patch16_reg4_gap_256", global_batch=4)
    s.model.eval()
    b = next(s.batches(0, 0, 1, 4))
    logits = s.model(b.tokens, b.positions)
    x = torch.cat([s.vit.reg_token.expand(4, -1, -1), s.model.stem.tokens[b.tokens] + s.model.stem.positions], 1)
    features = s.vit.fc_norm(s.vit.blocks(x))
    rows = [s.model.head(features[i, 4 + n]) for i in range(4) for n in range(16) if b.tokens[i, n] == 1]
    torch.testing.assert_close(logits, torch.stack(rows))


@pytest.mark.parametrize("size", [(32, 32), (16, 48), (64, 8)])
def test_any_grid(size):
    s = stage(arguments=VIT | {"img_size": list(size)}, global_batch=2)
    assert s.length == size[0] * size[1] // 64
    b = next(s.batches(0, 0, 1, 2))
    assert s.losses(s.model, b, 0).loss.isfinite()


def test_length_may_differ_from_the_grid():
    s = stage(global_batch=2, length=30)
    assert next(s.batches(0, 0, 1, 2)).tokens.shape == (2, 30)


def test_odd_grid_is_refused_in_one_line_or_padded():
    odd = VIT | {"img_size": 40}
    with pytest.raises(UserError, match="even") as caught:
        stage(arguments=odd)
    assert "\n" not in str(caught.value)
    s = stage(arguments=odd, rule={"odd": "pad"}, global_batch=2)
    assert (s.streams.train.rows(0, 2).tokens[:, -1] == 0).all()


def test_the_dropout_of_differential_attention_is_off():
    attention = with_dropout(DiffAttention(16, 2, attn_drop=0.5), 0.0).train()
    x = torch.randn(2, 5, 16)
    assert torch.equal(attention(x), attention(x))


def test_dropouts_of_the_recipe_are_off():
    drops = {"drop_path_rate": 0.5, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5, "pos_drop_rate": 0.5}
    s = stage(arguments=VIT | drops, global_batch=2)
    s.model.train()
    b = next(s.batches(0, 0, 1, 2))
    assert torch.equal(s.model(b.tokens, b.positions), s.model(b.tokens, b.positions))


# Objective and optimiser


def test_untrained_loss_is_ln_130_and_ln_64_among_closers(faithful, batch):
    """In nats per masked token: nothing is known yet."""
    with torch.inference_mode():
        part = next(faithful.batches(0, 0, 1, 32))
        sums = faithful.losses(faithful.model, part, 0)
        assert sums.loss.item() / part.weight == pytest.approx(math.log(130), abs=0.1)
        assert sums.correct.item() / part.weight < 0.05
        logits = faithful.model(part.tokens, part.positions)
        among = nn.functional.cross_entropy(logits[:, 66:], part.targets - 66).item()
    assert among == pytest.approx(math.log(64), abs=0.1)
    assert math.log(64) == pytest.approx(4.16, abs=0.005)


def test_losses_are_sums_over_masked_tokens():
    s = stage(global_batch=4)
    b = next(s.batches(0, 0, 1, 4))
    sums = s.losses(s.model, b, 0)
    log_p = s.model(b.tokens, b.positions).double().log_softmax(-1)
    expected = -sum(log_p[i, t] for i, t in enumerate(b.targets))
    torch.testing.assert_close(sums.loss.double(), expected, rtol=1e-5, atol=0)
    assert sums.correct == sum(int(log_p[i].argmax()) == t for i, t in enumerate(b.targets.tolist()))


def test_a_batch_without_a_masked_token_costs_nothing():
    s = stage(global_batch=2)
    tokens = s._batch(s.streams.train, 0, 2).tokens
    none = torch.empty(0, dtype=torch.long)
    loss = s.losses(s.model, MaskedBatch(tokens=tokens, positions=none, targets=none, weight=0.0), 0).loss
    loss.backward()
    assert loss == 0 and all(p.grad is None or not p.grad.any() for p in s.model.parameters())


def test_everything_decays_unless_asked_otherwise():
    (group,) = stage(weight_decay=0.05).parameter_groups()
    model = stage().model
    assert group["weight_decay"] == 0.05 and len(group["params"]) == len(list(model.parameters()))

    s = stage(decay_all=False, weight_decay=0.05)
    decayed, free = s.parameter_groups()
    names = {p: n for n, p in s.model.named_parameters()}
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    matrices = {n for n in names.values() if n.endswith("weight") and "norm" not in n}
    assert {names[p] for p in decayed["params"]} == matrices
    assert len(decayed["params"]) + len(free["params"]) == len(names)


def test_evaluation_shares_add_up_over_ranks():
    s = stage(global_batch=8, val_rows=10)
    s.model.eval()
    with torch.inference_mode():
        whole = s.evaluate(s.model, 0, 1, 4)
        shares = [s.evaluate(s.model, rank, 3, 4) for rank in range(3)]
    for name, value in whole.items():
        assert sum(part[name] for part in shares) == pytest.approx(value, rel=1e-5)
    rows = s.streams.validation.masked_rows(0, 10, 0.5)
    assert whole["weight"] == rows.masked.sum() > 0
    train = s.streams.train.rows(0, 256).tokens
    assert not (s.streams.validation.rows(0, 10).tokens[:, None] == train).all(-1).any()


def test_learns_a_small_dyck():
    """Masked accuracy of a narrow trunk on 2 types goes from chance to nearly the oracle's."""
    s = stage(arguments=VIT | {"img_size": [16, 32]}, rule={"k": 2}, global_batch=64, budget="200 steps")
    optimizer = torch.optim.AdamW(s.parameter_groups(), lr=2e-3)
    for b in s.batches(0, 0, 1, 64):
        optimizer.zero_grad()
        (s.losses(s.model, b, 0).loss / b.weight).backward()
        optimizer.step()
    s.model.eval()
    with torch.inference_mode():
        sums = s.evaluate(s.model, 0, 1, 256)
    assert sums["correct"] / sums["weight"] > 0.95


def test_fresh_weights_are_those_of_the_seed_whatever_the_global_generator():
    def weights(seed):
        return stage(seed=seed).model.state_dict()

    first = weights(0)
    torch.manual_seed(77)
    again, other = weights(0), weights(1)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert isinstance(stage().model, WarmupModel)
