"""GPT-2 folders in and out: logits, losses and texts equal those of transformers; trunks cross to ViTs and back."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import vitwarm
from vitwarm.cli import call
from vitwarm.data.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer
from vitwarm.errors import UserError
from vitwarm.exports import export_gpt2, read_gpt2
from vitwarm.transfer import read_source
from vitwarm.trunk import Trunk, build_decoder, generate

ROOT = Path(__file__).parents[2]
transformers = pytest.importorskip("transformers")

VOCAB, LENGTH = 300, 32


def theirs(seed=0, **more):
    """A tiny GPT2LMHeadModel whose every tensor matters."""
    sizes = {"vocab_size": VOCAB, "n_positions": LENGTH, "n_embd": 48, "n_layer": 2, "n_head": 3}
    config = transformers.GPT2Config(**{**sizes, "bos_token_id": None, "eos_token_id": None, **more})
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.2)
    return model


def ours(seed=0, size="2_3_48", **more):
    model = build_decoder(size, VOCAB, LENGTH, "test", seed=seed, **more).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.2)
    return model


def tokens(rows=3, length=LENGTH):
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(4))


def close(left, right):
    torch.testing.assert_close(left, right, atol=2e-5, rtol=1e-4)


# In


@pytest.mark.parametrize("tied", [True, False])
def test_imported_weights_give_their_logits_loss_and_greedy_text(tmp_path, tied):
    model = theirs(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    decoder = read_gpt2(tmp_path).eval()
    x = tokens()
    close(decoder(x), model(x).logits)
    loss = model(x, labels=x).loss  # shifted inside, mean over the rest
    decoder.max_logits = 8 * VOCAB
    close(decoder.loss(x[:, :-1], x[:, 1:]).loss / x[:, 1:].numel(), loss)
    prompt = x[:, :5]
    expected = model.generate(prompt, max_new_tokens=20, do_sample=False, attention_mask=torch.ones_like(prompt))
    assert torch.equal(generate(decoder, prompt, 20), expected)
    assert decoder.tied == tied and len(expected[:, 5:].unique()) > (1 if tied else 5)


def test_files_of_the_first_release_are_read(tmp_path):
    """Names without prefix, and the causal mask as a tensor, as in the hub's `gpt2`."""
    model = theirs()
    model.save_pretrained(tmp_path)
    old = {n.removeprefix("transformer."): t for n, t in load_file(tmp_path / "model.safetensors").items()}
    for i in range(2):
        old[f"h.{i}.attn.bias"] = torch.ones(LENGTH, LENGTH).tril()[None, None]
        old[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(old, tmp_path / "model.safetensors")
    close(read_gpt2(tmp_path).eval()(tokens()), model(tokens()).logits)


def test_half_precision_files_become_fp32(tmp_path):
    theirs().to(torch.bfloat16).save_pretrained(tmp_path)
    decoder = read_gpt2(tmp_path)
    assert {p.dtype for p in decoder.parameters()} == {torch.float32}
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, dtype="float32")
    close(decoder.eval()(tokens()), model(tokens()).logits)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "llama"}, "type 'llama'"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"n_inner": 100}, "MLP has 4 widths, 192"),
        ({"n_head": 5}, "5 heads do not divide"),
        ({"n_layer": "two"}, "n_layer is 'two'"),
        ({"n_layer": 3}, "does not fit its config.json: 12 tensors differ, first blocks.2."),
        ({"n_positions": 64}, "first pos_embed.weight"),
        ({"tie_word_embeddings": False}, "first head.weight"),
    ],
)
def test_other_models_are_refused_in_one_line(tmp_path, change, reason):
    theirs().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=reason) as caught:
        read_gpt2(tmp_path)
    assert "\n" not in str(caught.value)


def test_damaged_folders_are_refused_in_one_line(tmp_path):
    theirs().save_pretrained(tmp_path)

    def refused(reason):
        with pytest.raises(UserError, match=reason) as caught:
            read_gpt2(tmp_path)
        assert "\n" not in str(caught.value)

    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused("is damaged")
    save_file({"transformer.h.0.attn.c_attn.weight": torch.zeros(2, 2), "mystery": torch.zeros(1)}, weights)
    refused("GPT-2 has no tensor mystery")
    weights.unlink()
    refused("no model.safetensors")
    (tmp_path / "config.json").write_text("[")
    refused("not readable as JSON")
    (tmp_path / "config.json").unlink()
    refused("no config.json")


# Out


def test_a_middle_block_that_repeats_is_no_model_of_transformers(tmp_path):
    core = build_decoder("3_2_16", 40, 16, seed=0, middle_runs=3)
    with pytest.raises(UserError, match="middle block runs 3 times") as refused:
        vitwarm.export(core, tmp_path / "mine")
    assert "\n" not in str(refused.value) and not (tmp_path / "mine").exists()
    export_gpt2(core, tmp_path / "core", provenance={"trained": "warmup", "metrics": {"accuracy": 0.9}})
    assert json.loads((tmp_path / "core/vitwarm.json").read_text())["middle_runs"] == 3
    assert torch.equal(read_gpt2(tmp_path / "core")(torch.arange(16)[None]), core(torch.arange(16)[None]))
    card = (tmp_path / "core/README.md").read_text()
    assert "the middle block run 3 times | 0.9" in card and "not a model to run" in card
    for wrong in (0, True, "3", 1e9):
        (tmp_path / "core/vitwarm.json").write_text(json.dumps({"middle_runs": wrong}))
        with pytest.raises(UserError, match="middle_runs is .*, not a whole number from 1"):
            read_gpt2(tmp_path / "core")


@pytest.mark.parametrize("tied", [True, False])
def test_an_export_gives_the_same_logits_in_transformers(tmp_path, tied):
    decoder = ours(tied=tied)
    export_gpt2(decoder, tmp_path / "export", tokenizer=ByteTokenizer(), provenance={"seed": 3})
    model, said = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert not any(said.values()), said
    close(model.eval()(tokens()).logits, decoder(tokens()))
    assert model.generation_config.eos_token_id == model.config.eos_token_id == 256
    again = read_gpt2(tmp_path / "export").state_dict()
    assert all(torch.equal(t, again[n]) for n, t in decoder.state_dict().items()) and len(again) == 28 + (not tied)
    names = {p.name for p in (tmp_path / "export").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "vitwarm.json", "vocab.json",
                     "merges.txt", "tokenizer_config.json", "README.md"}  # fmt: skip
    record = json.loads((tmp_path / "export" / "vitwarm.json").read_text())
    assert record == {"seed": 3, "trunk": {"block": "Block", "width": 48, "depth": 2, "heads": 3}}


def test_text_goes_through_transformers_as_through_us(tmp_path):
    """Model and tokenizer of an export in transformers alone: the same ids, the same continuation."""
    decoder, tokenizer = ours(tied=False), ByteTokenizer()
    export_gpt2(decoder, tmp_path / "export", tokenizer=tokenizer)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    their = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    asked = their("Grüße, 1\n", return_tensors="pt")
    assert asked.input_ids[0].tolist() == tokenizer.encode("Grüße, 1\n")
    expected = model.generate(**asked, max_new_tokens=12, do_sample=False, pad_token_id=256)
    assert torch.equal(generate(decoder, asked.input_ids, 12, stop=tokenizer.end), expected)


def test_without_a_tokenizer_no_token_ends_a_text(tmp_path):
    """transformers would otherwise take 50256, which is no id of a small vocabulary."""
    export_gpt2(ours(), tmp_path / "export")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert model.config.eos_token_id is None and model.generation_config.eos_token_id is None


def test_an_export_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    export_gpt2(ours(0), tmp_path / "export")
    before = {p.name: p.read_bytes() for p in (tmp_path / "export").iterdir()}

    def full(self, folder, max_length):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CharTokenizer, "save", full)
    with pytest.raises(OSError, match="No space left"):
        export_gpt2(ours(1), tmp_path / "export", tokenizer=CharTokenizer())
    assert [p.name for p in tmp_path.iterdir()] == ["export"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "export").iterdir()} == before
    with pytest.raises(UserError, match="the tokenizer has 302 ids, the decoder 300"):
        export_gpt2(ours(), tmp_path / "other", tokenizer=CharTokenizer("".join(map(chr, range(1000, 1302))), ()))
    assert not (tmp_path / "other").exists()
    export_gpt2(ours(1), tmp_path / "export")
    assert torch.equal(read_gpt2(tmp_path / "export").norm.weight, ours(1).norm.weight)


# Across


def vit(seed=0, **more):
    torch.manual_seed(seed)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **(sizes | more)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.2)
    return model


def same_trunk(left, right):
    left, right = Trunk(left).state_dict(), Trunk(right).state_dict()
    return left.keys() == right.keys() and all(torch.equal(t, right[n]) for n, t in left.items())


def test_a_decoder_starts_a_vit(tmp_path):
    """From our export, from a folder of transformers, from a bare file of the decoder: the trunk and nothing else."""
    decoder = ours(1)
    export_gpt2(decoder, tmp_path / "ours")
    transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    save_file(decoder.state_dict(), tmp_path / "decoder.safetensors")
    for source in ("ours", "theirs", "decoder.safetensors"):
        target = vit()
        before = {n: t.clone() for n, t in target.state_dict().items()}
        report = vitwarm.warm_start(target, tmp_path / source)
        assert same_trunk(target, decoder) and len(report.copied) == 26
        for name in report.fresh:
            assert torch.equal(target.state_dict()[name], before[name])
        assert {n.split(".")[0] for n in report.fresh} == {"cls_token", "pos_embed", "patch_embed", "head"}
    x = torch.randn(2, 9, 48)
    # tanh GELU and epsilon 1e-5 there, exact GELU and 1e-6 here: the same function but for some 1e-3
    apart = (Trunk(target)(x, is_causal=True) - decoder.features(x)).abs().max()
    assert 0 < apart < 2e-2


def test_a_vit_starts_a_decoder(tmp_path):
    source, target = vit(1, global_pool="avg"), ours(0)
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    tables = target.token_embed.weight.clone(), target.pos_embed.weight.clone()
    report = vitwarm.warm_start(target, tmp_path / "vit.safetensors")
    assert same_trunk(source, target) and sorted(report.fresh) == ["pos_embed.weight", "token_embed.weight"]
    assert torch.equal(tables[0], target.token_embed.weight) and torch.equal(tables[1], target.pos_embed.weight)
    vitwarm.warm_start(ours(0), tmp_path / "vit.safetensors", groups=["attention"])
    with pytest.raises(UserError, match="does not fit"):  # a picture's positions are no text's
        vitwarm.warm_start(ours(0), tmp_path / "vit.safetensors", groups=["embedding"])


def test_a_decoder_starts_another_whose_vocabulary_differs(tmp_path):
    """The semantic stage of arXiv 2601.21725: the trunk goes over, both tables stay fresh."""
    rule = build_decoder("2_3_48", 102, 64, "rule", seed=1)
    save_file(rule.state_dict(), tmp_path / "rule.safetensors")
    target = ours(0)
    report = vitwarm.warm_start(target, tmp_path / "rule.safetensors")
    assert same_trunk(rule, target) and sorted(report.fresh) == ["pos_embed.weight", "token_embed.weight"]


@pytest.mark.parametrize("record", [True, False])
def test_other_heads_are_refused_by_our_record_or_their_configuration(tmp_path, record):
    export_gpt2(ours(size="2_4_48"), tmp_path / "export")
    if not record:
        (tmp_path / "export" / "vitwarm.json").unlink()
    for target in (vit(), ours()):
        with pytest.raises(UserError, match="its trunk has heads 4, the model's 3"):
            vitwarm.warm_start(target, tmp_path / "export")


def test_a_layer_scale_has_no_place_in_a_decoder(tmp_path):
    save_file(vit(init_values=0.1).state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match="the target has no such tensor"):
        vitwarm.warm_start(ours(), tmp_path / "vit.safetensors")


def test_gpt2_names_are_read_as_ours(tmp_path):
    export_gpt2(ours(), tmp_path / "export")
    tensors, found = read_source(tmp_path / "export")
    state = ours().state_dict()
    assert found.endswith("model.safetensors") and tensors.keys() == state.keys()
    assert all(torch.equal(t, state[n]) for n, t in tensors.items())


# vitwarm generate


def test_the_tool_writes_what_the_model_says(tmp_path, capsys):
    decoder, tokenizer = ours(tied=False), ByteTokenizer()
    export_gpt2(decoder, tmp_path / "export", tokenizer=tokenizer)
    call("generate", [f"export={tmp_path / 'export'}", "prompt=one = 1", "tokens=9"])
    ids = generate(decoder, torch.tensor([tokenizer.encode("one = 1")]), 9, stop=256)[0].tolist()
    assert capsys.readouterr().out == tokenizer.decode(ids) + "\n" and 256 not in ids
    said = []
    for seed in (0, 0, 1):
        call("generate", [f"export={tmp_path / 'export'}", "prompt=", "tokens=9", "temperature=1.5", f"seed={seed}"])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


def test_the_tool_ends_mistakes_in_one_line(tmp_path, capsys):
    export_gpt2(ours(), tmp_path / "export", tokenizer=ByteTokenizer())
    export_gpt2(ours(), tmp_path / "mute")
    export = f"export={tmp_path / 'export'}"
    for arguments, reason in (
        (["prompt=a"], "no export=RUN/export; see"),
        ([export], "no prompt="),
        ([export, "prompt=a", "tokens=many"], "tokens is a whole number, not 'many'"),
        ([export, "prompt=a", "tokens=0"], r"tokens must lie in \[1, inf\)"),
        ([export, "prompt=a", "temperature=-1"], "temperature must lie in"),
        ([export, "prompt=a", "temperature=nan"], "temperature must lie in"),
        ([export, "prompt=a", "heat=1"], "no option heat=; known: export="),
        ([export, "prompt=a", "tokens=40"], "do not fit the decoder's 32 positions"),
        ([f"export={tmp_path / 'none'}", "prompt=a"], "no config.json"),
        ([f"export={tmp_path / 'mute'}", "prompt=a"], "no tokenizer at"),
        ([f"export={tmp_path / 'mute'}", "tokenizer=chars", "prompt="], "needs a tokenizer with an end-of-text id"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            call("generate", arguments)
        assert "\n" not in str(caught.value)
    call("generate", ["--help"])
    assert "temperature" in capsys.readouterr().out


def test_the_tool_exits_with_2(tmp_path):
    command = [sys.executable, ROOT / "tools" / "generate.py", "prompt=a"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"vitwarm: error: no export=RUN/export; see python {command[1]} --help\n"


def test_an_export_keeps_the_tokenizer_that_it_was_read_with(tmp_path):
    pytest.importorskip("tiktoken")
    alphabet = list(ByteTokenizer.vocab())[:256]
    vocab = {t: i for i, t in enumerate([*alphabet, "th", "the"])}
    export_gpt2(ours(), tmp_path / "export", tokenizer=BPETokenizer(vocab, ["t h", "th e"]))
    shutil.move(tmp_path / "export", tmp_path / "moved")
    their = transformers.AutoTokenizer.from_pretrained(tmp_path / "moved")
    assert their("the th").input_ids == [257, 32, 256] == BPETokenizer(vocab, ["t h", "th e"]).encode("the th")
