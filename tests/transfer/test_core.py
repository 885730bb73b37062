"""The core inside the package: what it is, that it can be made again, and that any plain ViT starts from it."""

import hashlib
import json

import pytest
import timm
import torch
from safetensors.torch import load_file
from test_warm_start import FACTS, SMALL, model, state

import vitwarm
from vitwarm.assembly import assemble
from vitwarm.cli import call
from vitwarm.config import Config, ModelConfig
from vitwarm.errors import UserError
from vitwarm.exports import export_model, read_gpt2
from vitwarm.recipe import load_recipe, recipe_hash
from vitwarm.result import summary
from vitwarm.run import run
from vitwarm.stages import make_warmup
from vitwarm.transfer import group_of
from vitwarm.transfer.core import CORE, MAX_BYTES, pack_core
from vitwarm.trunk import Trunk, build_decoder

TINY = [
    "run.workers=0",
    "warmup.global_batch=8",
    "warmup.val_rows=8",
    "warmup.eval_every=2",
    "warmup.lr_warmup=1 steps",
]


def test_the_shipped_core_is_whole_small_and_says_where_it_comes_from():
    weights = CORE / "model.safetensors"
    record = json.loads((CORE / "vitwarm.json").read_text())
    assert weights.stat().st_size <= MAX_BYTES
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == record["sha256"]
    assert record["recipe_hash"] == recipe_hash(load_recipe(["recipe=core_vit_small"]))
    assert record["metrics"]["accuracy"] > 0.95
    assert record["controls"] == {"attention": "scale:0.5", "mlp": "scale:0.5"}
    assert record["trunk"] == {"block": "Block", "width": 192, "depth": 3, "heads": 3}
    assert all(group_of(n) not in ("embedding", "head") for n in load_file(weights))


@pytest.mark.parametrize(("name", "more"), [
    ("vit_tiny_patch16_224", {"depth": 4}),
    ("vit_small_patch16_224", {"depth": 3, "img_size": 32, "patch_size": 8, "global_pool": "avg"}),
    ("deit3_small_patch16_224", {"depth": 5}),
    ("vit_tiny_patch16_224", {"embed_dim": 320, "num_heads": 4, "depth": 4}),
])  # fmt: skip
def test_the_core_starts_any_plain_vit(name, more):
    vit = timm.create_model(name, num_classes=3, **more)
    before = state(vit)
    report = vitwarm.warm_start(vit, "vitwarm:core")
    assert all(torch.equal(t, before[n]) == (n in report.fresh) for n, t in vit.state_dict().items())
    assert {n for n in report.fresh if group_of(n) not in ("embedding", "head")} == {n for n in before if ".ls" in n}
    assert Trunk(vit)(torch.randn(1, 5, vit.embed_dim)).isfinite().all()


def test_a_core_is_packed_from_an_export(tmp_path):
    config = Config(model=ModelConfig(name="deit_tiny_patch16_224", num_classes=5, args=dict(SMALL)))
    source = model(0)
    export_model(source, tmp_path / "export", config, FACTS)
    record = pack_core(tmp_path / "export", tmp_path / "core")
    target = model(1, embed_dim=96, num_heads=6, depth=4)
    vitwarm.warm_start(target, tmp_path / "core", fit="expand")
    assert torch.equal(target.blocks[3].norm1.weight, source.blocks[2].norm1.weight.half().float().repeat(2))
    assert record["sha256"] == hashlib.sha256((tmp_path / "core/model.safetensors").read_bytes()).hexdigest()
    assert "controls" not in record
    pack_core(tmp_path / "export", tmp_path / "halved", {"mlp": "scale:0.5"})
    whole, halved = (load_file(tmp_path / name / "model.safetensors") for name in ("core", "halved"))
    for name, tensor in whole.items():
        factor = 0.5 if group_of(name) == "mlp" else 1.0
        torch.testing.assert_close(halved[name].float(), tensor.float() * factor, rtol=1e-3, atol=1e-7)
    assert json.loads((tmp_path / "halved/vitwarm.json").read_text())["controls"] == {"mlp": "scale:0.5"}
    export_model(model(0, depth=4), tmp_path / "four", config, FACTS)
    for place, says in [(tmp_path / "four", "three blocks"), (tmp_path, "no export with")]:
        with pytest.raises(UserError, match=says):
            pack_core(place, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_the_middle_block_runs_several_times():
    vit = model(0)
    x = torch.randn(2, 5, 48)
    with torch.no_grad():
        y = x
        for i in (0, 1, 1, 1, 2):
            y = vit.blocks[i](y)
        assert torch.equal(Trunk(vit, middle_runs=3)(x), vit.norm(y))
        assert torch.equal(Trunk(vit)(x), vit.norm(vit.blocks(x)))
    with pytest.raises(UserError, match="the middle of three blocks; the model has 4"):
        Trunk(model(0, depth=4), middle_runs=2)


def test_the_middle_block_of_a_decoder_runs_several_times():
    decoder = build_decoder("3_2_16", 5, 7, "x", seed=0, middle_runs=4)
    tokens = torch.randint(0, 5, (2, 7), generator=torch.Generator().manual_seed(0))
    deep = build_decoder("6_2_16", 5, 7, "x", seed=1)
    weights = decoder.state_dict()
    for i, origin in enumerate((0, 1, 1, 1, 1, 2)):
        deep.blocks[i].load_state_dict(decoder.blocks[origin].state_dict())
    deep.load_state_dict({n: t for n, t in weights.items() if not n.startswith("blocks.")}, strict=False)
    torch.testing.assert_close(decoder(tokens), deep(tokens))
    with pytest.raises(UserError, match="the middle of three blocks; the model has 4"):
        build_decoder("4_2_16", 5, 7, "x", seed=0, middle_runs=2)


@pytest.mark.parametrize("objective", [[], ["warmup.objective=next_state", "warmup.rule={name: eca, width: 8}"]])
def test_a_core_of_a_decoder_becomes_a_larger_one(tmp_path, objective):
    """Of the same width, the blocks are the core's, whichever objective trained it."""
    small = ["model.decoder.dropout=0", "warmup.length=31", "warmup.rule={name: set, symbols: 5, end: false}"]
    more = ["warmup.budget=2 steps", f"run.dir={tmp_path / 'run'}", *TINY[:-1]]
    run(load_recipe(["recipe=core_gpt", "model.decoder.size=3_2_16", *small, *objective, *more]))
    core = load_file(tmp_path / "run/export/model.safetensors")
    recipe = ["recipe=haystack_default", "model.decoder.size=5_2_16", "algorithmic.size=3", "transfer.fit=expand"]
    model = assemble(load_recipe([*recipe, f"init_from={tmp_path / 'run'}", "run.workers=0"]), 1).model
    for i, origin in enumerate((0, 1, 1, 1, 2)):
        assert torch.equal(model.blocks[i].mlp.fc1.weight, core[f"transformer.h.{origin}.mlp.c_fc.weight"].T)


def test_the_run_of_a_core_says_so_and_what_it_measured_is_what_its_folder_computes(tmp_path, capsys):
    """Only `transformers` runs the middle block once, and nobody is told to load it there."""
    words = ["model.decoder.size=3_2_16", "warmup.middle_runs=6", "warmup.length=31", "warmup.budget=2 steps"]
    rule = "warmup.rule={name: set, symbols: 5, end: false}"
    config = load_recipe(["recipe=core_gpt", *words, rule, f"run.dir={tmp_path / 'run'}", *TINY])
    result = run(config)
    said = summary(result, tmp_path / "run")
    assert "a core, not a model to run (its middle block ran 6 times)" in said and "from_pretrained" not in said
    for folder in (tmp_path / "run/warmup", tmp_path / "run/export"):
        assert json.loads((folder / "vitwarm.json").read_text())["middle_runs"] == 6
        assert "its middle block ran 6 times in training" in (folder / "README.md").read_text()
    decoder, stage = read_gpt2(tmp_path / "run/export").eval(), make_warmup(config, None)
    batch, losses = stage.batch("validation", 0, 8), []
    for runs in (decoder.middle_runs, 1):
        decoder.middle_runs = runs
        with torch.inference_mode():
            losses.append(stage.losses(decoder, batch, 0).loss.item() / batch.weights.sum().item())
    assert losses[0] == pytest.approx(result["metrics"]["loss"], rel=1e-6) != losses[1]
    call("inspect", [f"export={tmp_path / 'run'}", "rule=set", "symbols=5", "end=false", "length=31"])
    assert "Block 1 ran 6 times" in capsys.readouterr().out
    for fresh in ("false", "true"):
        out = tmp_path / f"composed-{fresh}"
        call("compose", [f"target={tmp_path / 'run'}", f"out={out}", f"fresh={fresh}", f"trunk={tmp_path / 'run'}"])
        assert read_gpt2(out).middle_runs == 6


def test_a_core_recipe_ends_in_a_core(tmp_path, capsys):
    config = load_recipe(["recipe=core_vit_small", "warmup.budget=2 steps", f"run.dir={tmp_path / 'run'}", *TINY])
    said = summary(run(config), tmp_path / "run")
    assert "its middle block ran 4 times" in said and "timm.create_model" not in said
    call("compose", [f"target={tmp_path / 'run'}", f"out={tmp_path / 'out'}", f"trunk={tmp_path / 'run'}"])
    for folder in (tmp_path / "run/export", tmp_path / "out"):
        assert json.loads((folder / "vitwarm.json").read_text())["middle_runs"] == 4
        assert "its middle block ran 4 times in training" in (folder / "README.md").read_text()
    call("inspect", [f"export={tmp_path / 'out'}", "rule=dyck"])
    assert "Block 1 ran 4 times" in capsys.readouterr().out
    pack_core(tmp_path / "run/export", tmp_path / "core")
    vitwarm.warm_start(timm.create_model("vit_tiny_patch16_224", depth=5), tmp_path / "core", fit="expand")


def test_a_recipe_starts_from_the_core_and_says_so():
    recipe = ["recipe=digits_default", "model.name=vit_tiny_patch16_224", "init_from=vitwarm:core", "run.workers=0"]
    args = "model.args={img_size: 32, patch_size: 8, embed_dim: 192, depth: 4, num_heads: 3}"
    parts = assemble(load_recipe([*recipe, args, "images.size=32", "transfer.fit=expand"]), 1)
    assert parts.given.source.endswith("core_vit/model.safetensors") and len(parts.given.copied) == 12 * 4 + 2
    with pytest.raises(UserError, match="depth 3"):
        assemble(load_recipe([*recipe, args, "images.size=32"]), 1)
    with pytest.raises(UserError, match="about given weights"):
        load_recipe(["recipe=digits_proc", "transfer.fit=expand"])
