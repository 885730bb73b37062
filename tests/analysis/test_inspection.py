"""Inspection of a trunk, against attention by hand, NumPy's SVD, and trunks whose entropy is known."""

import numpy as np
import pytest
import timm
import torch
from test_warm_start import FACTS, NAME, SMALL, model, trunk_file
from transformers import GPT2Config, GPT2LMHeadModel

from vitwarm.analysis.inspection import attention_entropy, inspect_trunk
from vitwarm.analysis.page import table
from vitwarm.cli import call
from vitwarm.config import Config, ModelConfig
from vitwarm.errors import UserError
from vitwarm.exports import export_gpt2, export_model
from vitwarm.exports.gpt2 import as_trunk
from vitwarm.procedural import RuleStream, make_rule
from vitwarm.transfer import compose
from vitwarm.trunk import SymbolStem, build_decoder

DYCK = make_rule(name="dyck", k=4)


def test_entropy_is_that_of_attention_by_hand():
    vit = model(0)
    with torch.no_grad():
        vit.blocks[0].attn.qkv.weight.mul_(20)
    found = inspect_trunk(vit, DYCK, rows=3, seed=5)
    symbols = torch.from_numpy(RuleStream(DYCK, 5, "validation", 16).rows(0, 3).tokens)
    with torch.no_grad():
        x = vit.blocks[0].norm1(SymbolStem(vit, DYCK.vocab.size, 16, 5)(symbols))
        q, k, _ = vit.blocks[0].attn.qkv(x).numpy().reshape(3, 17, 3, 3, 16).transpose(2, 0, 3, 1, 4)
    logits = np.einsum("bhnk,bhmk->bhnm", q, k) / 16**0.5
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    expected = (-(p * np.log(p)).sum(-1) / np.log(17)).mean((0, 2))
    np.testing.assert_allclose(found.entropy[0], expected, rtol=1e-5)
    assert expected.min() < 0.9
    assert vit.blocks[0].attn.fused_attn == timm.create_model(NAME, **SMALL).blocks[0].attn.fused_attn


def test_a_head_without_preferences_has_entropy_one_and_a_sharp_one_nearly_none():
    for decoder in (False, True):
        net = build_decoder("2_3_48", DYCK.vocab.size, 16, "x", seed=0) if decoder else model(0)
        with torch.no_grad():
            for block in net.blocks:
                weight = block.attn.qkv.weight.view(3, 3, 16, 48)
                weight[:2, 0] = 0  # head 0: all logits alike
                block.attn.qkv.bias.zero_()
                weight[:2, 1] = 3e3 * torch.randn(16, 48)
        found = inspect_trunk(net, DYCK, rows=4, length=16)
        np.testing.assert_allclose(found.entropy[:, 0], 1.0, atol=1e-5)
        assert (found.entropy[:, 1] < 0.1).all()
        assert inspect_trunk(net, DYCK, rows=4, length=16).lowest(2) == "heads=0:1+1:1"


@pytest.mark.parametrize("decoder", [True, False])
def test_a_block_that_runs_several_times_is_one_row(decoder):
    """Its entropies are the mean of those that a deeper model has, whose blocks are copies."""
    if decoder:
        core = build_decoder("3_3_48", DYCK.vocab.size, 16, "x", seed=0, middle_runs=3)
        deep = build_decoder("5_3_48", DYCK.vocab.size, 16, "x", seed=1)
    else:
        core, deep = model(0), model(1, depth=5)
    with torch.no_grad():
        for block in core.blocks:
            block.attn.qkv.weight.mul_(20)
    deep.load_state_dict({n: t for n, t in core.state_dict().items() if "blocks." not in n}, strict=False)
    for i, origin in enumerate((0, 1, 1, 1, 2)):
        deep.blocks[i].load_state_dict(core.blocks[origin].state_dict())
    found = inspect_trunk(core, DYCK, rows=4, length=16, **({} if decoder else {"middle_runs": 3}))
    each = inspect_trunk(deep, DYCK, rows=4, length=16).entropy
    expected = np.stack([each[0], each[1:4].mean(0), each[4]])
    np.testing.assert_allclose(found.entropy, expected, rtol=1e-5)
    assert np.ptp(each[1:4], axis=0).max() > 0.01  # so that the mean is not any of them
    assert table(found).count("\n| ") == 3 and "Block 1 ran 3 times" in table(found)
    assert "Block 1 ran" not in table(inspect_trunk(deep, DYCK, rows=4, length=16))
    if decoder:
        tokens = torch.from_numpy(RuleStream(DYCK, 0, "validation", 16).rows(0, 4).tokens)
        asked = torch.ones(tokens.shape, dtype=torch.bool)
        np.testing.assert_allclose(attention_entropy(core, tokens, asked), expected, rtol=1e-5)


def test_spectra_and_sizes_are_numpys():
    vit = model(0)
    found = inspect_trunk(vit, DYCK, rows=2)
    value = vit.blocks[1].attn.qkv.weight.detach().numpy()[96:]
    np.testing.assert_allclose(found.spectrum["value"][1], np.linalg.svd(value, compute_uv=False), rtol=1e-4)
    assert found.rms["value"][1] == pytest.approx(np.sqrt((value**2).mean()))
    with torch.no_grad():
        vit.blocks[2].mlp.fc2.weight.copy_(torch.outer(torch.randn(48), torch.randn(192)))
        vit.blocks[0].attn.proj.weight.copy_(torch.linalg.qr(torch.randn(48, 48))[0])
    again = inspect_trunk(vit, DYCK, rows=2)
    assert again.effective_rank("MLP out")[2] == pytest.approx(1, abs=1e-3)
    assert again.effective_rank("projection")[0] == pytest.approx(48, abs=1e-3)


@pytest.mark.parametrize(
    "name",
    [
        "eva02_tiny_patch14_224",
        "vit_small_patch16_dinov3",
        "deit3_small_patch16_224",
        "beit_base_patch16_224",
        "vit_relpos_base_patch16_224",
    ],
)
def test_other_families(name):
    more = {"img_size": 28, "patch_size": 7} if "eva" in name else {}
    vit = model(0, name, **more).to(torch.bfloat16).train()
    assert inspect_trunk(vit, DYCK, rows=2).entropy.shape == (3, 3)
    assert vit.training and {p.dtype for p in vit.parameters()} == {torch.bfloat16}


def test_attention_of_another_kind_is_refused():
    """Each head of differential attention is the difference of two."""
    vit = timm.create_model("vit_dwee_patch16_reg1_gap_256", img_size=32, patch_size=8, depth=2)
    with pytest.raises(UserError, match="no attention of the usual kind"):
        inspect_trunk(vit, DYCK, rows=2)


def test_the_heads_it_names_can_be_kept_alone(tmp_path):
    source, target = model(0), model(1)
    lowest = inspect_trunk(source, DYCK, rows=4).lowest(2)
    report = compose(target, {lowest: trunk_file(tmp_path / "s.safetensors", source)})
    same = (target.blocks[0].attn.qkv.weight == source.blocks[0].attn.qkv.weight).float().mean().item()
    assert report.copied and same == pytest.approx(lowest.count("0:") / 3, abs=0.01)


def test_the_tool_looks_through_the_stem_of_the_runs_own_seed(tmp_path, capsys):
    vit, config = model(0), Config(model=ModelConfig(name=NAME, num_classes=5, args=dict(SMALL)))
    torch.nn.init.normal_(vit.blocks[0].attn.qkv.weight, std=0.5)  # so that entropies tell the positions apart
    export_model(vit, tmp_path / "e", config, FACTS | {"seed": 3})
    call("inspect", [f"export={tmp_path / 'e'}", "k=4"])
    first = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| 0 |"))
    entropies = {seed: np.sort(inspect_trunk(vit, make_rule("dyck", k=4), seed=seed).entropy[0]) for seed in (0, 3)}
    shown = {seed: " ".join(f"{h:.2f}" for h in heads) for seed, heads in entropies.items()}
    assert shown[3] in first and shown[0] not in first


def test_the_tool(tmp_path, capsys):
    config = Config(model=ModelConfig(name=NAME, num_classes=5, args=dict(SMALL)))
    for seed in range(2):
        export_model(model(seed), tmp_path / f"e{seed}", config, FACTS)
    page = tmp_path / "pages/page.png"
    call("inspect", [f"export={tmp_path / 'e0'}", f"vs={tmp_path / 'e1'}", "k=4", "lowest=3", "--png", str(page)])
    said = capsys.readouterr().out
    assert said.count("lowest entropy: heads=") == 2 and page.read_bytes()[:4] == b"\x89PNG"
    export_gpt2(build_decoder("2_4_16", 11, 8, "x", seed=0), tmp_path / "gpt2")
    for arguments, says in [
        ([f"export={tmp_path / 'gpt2'}", "k=16"], "name the rule that it learnt"),
        ([f"export={tmp_path / 'e0'}", "rule=dick"], "dick"),
        ([f"export={tmp_path / 'e0'}", "k=4", "length=7"], "length"),
        ([f"export={tmp_path}"], "no model at"),
        (["vs=x"], "no export=RUN; see"),
        ([f"export={tmp_path / 'e0'}", "k=["], "not readable as YAML"),
        ([f"export={tmp_path / 'e0'}", "--png", "page.jpg"], "--png is a file whose name ends in .png"),
    ]:
        with pytest.raises(UserError, match=says):
            call("inspect", arguments)


def test_a_gpt2_of_transformers_is_looked_into_as_our_decoder_is():
    theirs = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=110, n_positions=24)).eval()
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    with as_trunk(theirs) as ours:
        wanted = inspect_trunk(ours, "sort", rows=4)
    found = inspect_trunk(torch.nn.DataParallel(theirs), "sort", rows=4)
    assert np.array_equal(found.entropy, wanted.entropy) and found.entropy.shape == (2, 2)
    assert all(np.array_equal(found.rms[name], wanted.rms[name]) for name in wanted.rms)
    assert all(torch.equal(tensor, before[name]) for name, tensor in theirs.state_dict().items())


def test_a_rule_by_name_is_that_rule():
    by_name = inspect_trunk(model(0), {"name": "dyck", "k": 4}, rows=2)
    np.testing.assert_array_equal(by_name.entropy, inspect_trunk(model(0), DYCK, rows=2).entropy)
    for wrong in ({"rule": "dick"}, {"seed": "a"}, {"rows": 0}, {"length": 0}, {"length": 2.5}, {"middle_runs": 0}):
        with pytest.raises(UserError, match="|".join(wrong)):
            inspect_trunk(model(0), **{"rule": DYCK, **wrong})
