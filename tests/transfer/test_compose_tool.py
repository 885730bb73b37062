"""tools/compose.py: a folder that plain timm or transformers loads, its record, and one line for each mistake."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from test_warm_start import FACTS, NAME, SMALL, model, state
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from vitwarm.cli import call
from vitwarm.config import Config, ModelConfig
from vitwarm.data.tokenizers import ByteTokenizer, read_tokenizer
from vitwarm.errors import UserError
from vitwarm.exports import export, export_gpt2, export_model
from vitwarm.exports.opening import open_model
from vitwarm.trunk import build_decoder

TOOL = Path(__file__).resolve().parents[2] / "tools/compose.py"


def compose_tool(*arguments):
    done = subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def exports(tmp_path):
    """Exports of three seeds of one model: a, b and the target t."""
    vits = {}
    for seed, name in enumerate("abt"):
        vits[name] = model(seed)
        config = Config(name="x", model=ModelConfig(name=NAME, num_classes=5, args=dict(SMALL)))
        config.images.mean = [0.1, 0.2, 0.3]
        export_model(vits[name], tmp_path / name, config, FACTS)
    return vits


def test_a_composed_timm_folder(exports, tmp_path):
    code, said = compose_tool(
        f"target={tmp_path / 't'}", f"out={tmp_path / 'out'}", f"attention={tmp_path / 'a'}",
        f"mlp layers=last={tmp_path / 'b'}", "control.mlp=noise:0.5",
    )  # fmt: skip
    assert code == 0, said
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert loaded.pretrained_cfg["mean"] == [0.1, 0.2, 0.3] and loaded.num_classes == 5
    held = {n: state(v) for n, v in exports.items()}
    for name, tensor in loaded.state_dict().items():
        noisy = name.startswith("blocks.2.mlp")
        origin = "a" if ".attn." in name else "b" if noisy else "t"
        assert torch.equal(tensor, held[origin][name]) != noisy, name
    record = json.loads((tmp_path / "out/vitwarm.json").read_text())
    from_b = record["sources"]["mlp layers=last"]
    assert sorted(from_b["tensors"]) == sorted(n for n in held["b"] if n.startswith("blocks.2.mlp"))
    assert from_b["sha256"] == hashlib.sha256((tmp_path / "b/model.safetensors").read_bytes()).hexdigest()
    assert record["controls"] == {"mlp": "noise:0.5"} and record["trunk"]["depth"] == 3
    card, places = (tmp_path / "out/README.md").read_text(), [tmp_path / name for name in "abt"]
    given = "composed: attention of {}, mlp layers=last of {}, after the controls mlp noise:0.5; the rest of {}"
    story = f"{given.format(*places)}; not trained since."
    assert story in card and "not trained on images" not in card and "model-index" not in card


def test_classes_are_named_as_where_the_head_is_from(tmp_path):
    config = Config(model=ModelConfig(name=NAME, num_classes=5, args=dict(SMALL)))
    for seed, names in enumerate((list("abcde"), list("vwxyz"), None)):
        export_model(model(seed), tmp_path / str(seed), config, FACTS, names)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone/some.safetensors").write_bytes((tmp_path / "1/model.safetensors").read_bytes())
    target, trunk = f"target={tmp_path / '0'}", f"trunk={tmp_path / '1'}"
    for number, (arguments, names) in enumerate(
        [
            ([target, trunk], "abcde"),
            ([target, trunk, "fresh=true"], None),
            ([target, f"head={tmp_path / '1'}"], "vwxyz"),
            ([target, trunk, f"head={tmp_path / '2'}"], None),
            ([target, f"head={tmp_path / 'alone/some.safetensors'}"], None),
        ]
    ):
        call("compose", [*arguments, f"out={tmp_path / f'out{number}'}"])
        loaded = timm.create_model(f"local-dir:{tmp_path / f'out{number}'}", pretrained=True)
        assert loaded.pretrained_cfg.get("label_names") == (names and list(names)), arguments


def test_images_are_cropped_as_the_targets_are(tmp_path):
    siglip = timm.create_model(
        "vit_base_patch16_siglip_gap_224", num_classes=5, img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3
    )
    export(siglip, tmp_path / "t")
    export(siglip, tmp_path / "s")
    described = json.loads((tmp_path / "t/config.json").read_text())
    described["pretrained_cfg"]["crop_mode"] = "squash"
    (tmp_path / "t/config.json").write_text(json.dumps(described))
    call("compose", [f"target={tmp_path / 't'}", f"out={tmp_path / 'out'}", f"trunk={tmp_path / 's'}"])
    made = json.loads((tmp_path / "out/config.json").read_text())["pretrained_cfg"]
    assert made["crop_mode"] == "squash" and made["mean"] == described["pretrained_cfg"]["mean"]


def test_the_ids_that_begin_and_end_a_text_are_kept_without_a_tokenizer(tmp_path):
    theirs = GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_head=1, n_embd=8, vocab_size=16, n_positions=8, bos_token_id=1, eos_token_id=2)
    )
    theirs.save_pretrained(tmp_path / "t")
    for more in ([], ["fresh=true"]):
        out = tmp_path / f"out{len(more)}"
        call("compose", [f"target={tmp_path / 't'}", f"out={out}", f"mlp={tmp_path / 't'}", *more])
        read = AutoModelForCausalLM.from_pretrained(out)
        assert (read.config.bos_token_id, read.config.eos_token_id, read.generation_config.eos_token_id) == (1, 2, 2)


def test_a_composed_decoder_loads_in_transformers(tmp_path):
    decoders = {name: build_decoder("2_4_16", 257, 8, "x", seed=seed) for seed, name in enumerate("ab")}
    for name, decoder in decoders.items():
        export_gpt2(decoder, tmp_path / name, tokenizer=ByteTokenizer() if name == "a" else None)
    places = [f"target={tmp_path / 'a'}", f"out={tmp_path / 'out'}", f"mlp={tmp_path / 'b'}"]
    call("compose", places)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    expected = decoders["a"].eval()
    for own, other in zip(expected.blocks, decoders["b"].blocks, strict=True):
        own.mlp.load_state_dict(other.mlp.state_dict())
    tokens = torch.arange(8)[None]
    torch.testing.assert_close(theirs(tokens).logits, expected(tokens))
    assert theirs.config.eos_token_id == ByteTokenizer().end
    assert read_tokenizer(tmp_path / "out").encode("It") == ByteTokenizer().encode("It")


def test_a_fresh_target_shares_shapes_and_nothing_else(exports, tmp_path):
    drawn, again = (open_model(str(tmp_path / "t"), fresh=True, seed=1).model.state_dict() for _ in range(2))
    own = state(exports["t"])
    assert all(torch.equal(drawn[n], again[n]) and drawn[n].shape == t.shape for n, t in own.items())
    assert not torch.equal(drawn["pos_embed"], own["pos_embed"])
    assert all(torch.equal(t, own[n]) for n, t in open_model(str(tmp_path / "t")).model.state_dict().items())


def test_mistakes_end_in_one_line_and_write_nothing(exports, tmp_path):
    export_model(model(0, num_heads=1), tmp_path / "one", Config(model=ModelConfig(name=NAME, num_classes=5)), FACTS)
    t, out = f"target={tmp_path / 't'}", f"out={tmp_path / 'out'}"
    for arguments, says in [
        ([t, f"attention={tmp_path / 'a'}"], "no out=FOLDER; see"),
        ([t, out], "no GROUPS=SOURCE; see"),
        ([t, out, f"attention={tmp_path / 'one'}"], "heads 1, the model's 3"),
        ([t, out, f"atention={tmp_path / 'a'}"], "unknown tensor group 'atention'"),
        ([f"target={tmp_path}", out, f"mlp={tmp_path / 'a'}"], "no model at"),
        ([t, f"out={tmp_path / 'a'}", f"mlp={tmp_path / 'a'}"], "exists"),
        ([t, f"out={tmp_path / 'missing/../a'}", f"mlp={tmp_path / 'a'}"], "exists"),
        (["target=timm:vit_tiny_patch16_224", out, "trunk=vitwarm:core"], r"vitwarm.warm_start\(model, 'vitwarm:core'"),
    ]:
        with pytest.raises(UserError, match=says) as caught:
            call("compose", arguments)
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    code, said = compose_tool(t, out, "mlp=/nowhere")
    assert code == 2 and said.count("\n") == 1 and said.startswith("vitwarm: error: no weights at /nowhere")
