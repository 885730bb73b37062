"""`vitwarm.warm_up`: a recipe's warm-up on a model in memory, to the bit."""

import copy
import json
import os
import signal

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from torch.optim.swa_utils import AveragedModel
from transformers import GPT2Config, GPT2LMHeadModel

import vitwarm
from vitwarm.errors import Interrupted, UserError
from vitwarm.exports.gpt2 import from_gpt2
from vitwarm.procedural import rule_class
from vitwarm.recipe import build_recipe
from vitwarm.run import run
from vitwarm.stages import RuleStage, make_warmup
from vitwarm.stages.warmup import fresh_trunk
from vitwarm.training.batch import means
from vitwarm.trunk import build_decoder
from vitwarm.warming import _fit_schedule

ARGS = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 2}
RULE = {"name": "dyck", "k": 4}
SHORT = {"rule": RULE, "steps": 6, "global_batch": 8, "lr_warmup": "2 steps", "val_rows": 64, "eval_every": 3}


@pytest.fixture
def quiet():
    return {**SHORT, "progress": False}


def small(seed: int = 0, **more):
    torch.manual_seed(seed)
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, **ARGS | more)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def differing(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe that warms up alone: the model that it starts from, and the tensors that it ends with."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    warmup = {**{k: v for k, v in SHORT.items() if k != "steps"}, "budget": "6 steps"}
    sections = {"model": {"args": {**ARGS, "drop_path_rate": 0.1}, "num_classes": 3}, "warmup": warmup}
    sections["images"] = {"train": ""}
    config = build_recipe({**sections, "run.dir": str(folder), "seed": 7})
    result = run(config)
    return fresh_trunk(config), load_file(folder / "export/model.safetensors"), result


def test_it_is_the_recipes_warm_up_to_the_bit(recipe, quiet):
    start, wanted, result = recipe
    before = weights(start)
    state = torch.random.get_rng_state()
    with torch.inference_mode():  # a notebook may have switched gradients off
        report = vitwarm.warm_up(start, seed=7, **quiet)
    assert torch.equal(state, torch.random.get_rng_state())
    after = start.state_dict()
    assert not differing({name: wanted[name] for name in report.transfer.copied}, after)
    assert set(report.transfer.copied) == {n for n in before if n.startswith(("blocks.", "norm."))}
    assert differing(before, after) <= set(report.transfer.copied)
    outcome = result["stages"]["warmup"]
    assert (report.accuracy, report.loss) == (outcome["metrics"]["accuracy"], outcome["metrics"]["loss"])
    assert (report.steps, report.sequences, report.tokens) == (6, 48, 48 * 17)
    assert [entry["step"] for entry in report.curve] == [3, 6]


@pytest.mark.parametrize("wrap", [ModelEmaV3, AveragedModel, torch.compile, torch.nn.DataParallel])
def test_what_is_around_a_model_is_looked_through(wrap, quiet):
    plain, wrapped = small(), wrap(small())
    vitwarm.warm_up(plain, **quiet)
    vitwarm.warm_up(wrapped, **quiet)
    inner = next(m for m in wrapped.modules() if isinstance(m, type(plain)))
    assert not differing(plain.state_dict(), inner.state_dict())


def test_groups_dtype_and_mode_of_the_model_are_kept(quiet):
    model = small().to(torch.bfloat16).eval()
    model.blocks.requires_grad_(False)
    before = weights(model)
    vitwarm.warm_up(model, groups="attention", **quiet)
    changed = differing(before, model.state_dict())
    assert changed and all(".attn." in name for name in changed)
    assert not model.training and not any(p.requires_grad for p in model.blocks.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("objective", [{}, {"objective": "next_state", "length": 64}])
def test_the_default_type_of_torch_may_be_another(quiet, objective):
    rule = {"name": "eca", "width": 16} if objective else RULE
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model = build_decoder("2_2_16", 32, 64, seed=0) if objective else small()
        same = copy.deepcopy(model).float()
        report = vitwarm.warm_up(model, **{**quiet, "rule": rule, **objective})
    finally:
        torch.set_default_dtype(before)
    in_float = vitwarm.warm_up(same, **{**quiet, "rule": rule, **objective})
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert report.transfer.copied and report.loss > 0
    assert in_float.loss == report.loss and not differing(model.float().state_dict(), same.state_dict())


def test_mixed_precision_around_it_changes_nothing(quiet):
    plain, around = small(), small()
    vitwarm.warm_up(plain, **quiet)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vitwarm.warm_up(around, **quiet)
    assert not differing(plain.state_dict(), around.state_dict())


def test_half_precision_follows_the_weights(quiet):
    """Within another autocast torch keeps its half copies of the weights, and the loss is that of the first step's."""
    settings = {**quiet, "steps": 30, "eval_every": 30}
    full, half, around = (small() for _ in range(3))
    expected = vitwarm.warm_up(full, **settings).loss
    found = vitwarm.warm_up(half, precision="bf16", **settings).loss
    with torch.autocast("cpu", dtype=torch.float16):
        assert vitwarm.warm_up(around, precision="bf16", **settings).loss == found
    assert found == pytest.approx(expected, rel=0.02) and not differing(half.state_dict(), around.state_dict())


def test_chance_is_the_best_constant_answer():
    """Of `set` with two symbols, counted here over the sequences that the dataset gives."""
    rule = {"name": "set", "symbols": 2}
    report = vitwarm.warm_up(small(), rule, steps=1, global_batch=4, lr_warmup="0 steps", val_rows=96, progress=False)
    labels = [
        label
        for item in vitwarm.RuleDataset(rule, 16, split="validation", samples=96)
        for label in item["labels"].tolist()
        if label != -100
    ]
    assert report.chance == pytest.approx(max(map(labels.count, set(labels))) / len(labels))


def test_chance_is_that_of_the_level_that_was_measured(quiet):
    """Every evaluation masters its level here, and the next one has other symbols to predict."""
    rule = {"name": "curriculum", "rule": {"name": "set", "symbols": 4}, "start": 2, "step": 4, "threshold": 0.0}
    report = vitwarm.warm_up(small(), **{**quiet, "rule": rule})
    wanted = []
    for level in range(3):
        asked = [
            label
            for item in vitwarm.RuleDataset({**rule, "level": level}, 16, split="validation", samples=64)
            for label in item["labels"].tolist()
            if label != -100
        ]
        wanted.append(max(map(asked.count, set(asked))) / len(asked))
    assert [entry["level"] for entry in report.curve] == [1, 2] and len(set(wanted)) == 3
    assert [entry["chance"] for entry in report.curve] == pytest.approx(wanted[:2])
    assert report.chance == report.curve[-1]["chance"]


@pytest.mark.parametrize("objective", ["masked", "next_token", "next_state"])
def test_a_decoder_keeps_its_own_dropout_as_in_a_recipe(tmp_path, quiet, objective):
    settings = {**quiet, "rule": {"name": "eca", "width": 16}, "objective": objective, "length": 64}
    warmup = {key: value for key, value in settings.items() if key not in ("steps", "progress")}
    decoder = {"size": "2_2_16", "dropout": 0.3}
    config = build_recipe(
        {"model": {"decoder": decoder}, "warmup": {**warmup, "budget": "6 steps"}, "run.dir": str(tmp_path / "run")}
    )
    start = make_warmup(config, None).model if objective == "next_token" else fresh_trunk(config)
    outcome = run(config)["metrics"]
    report = vitwarm.warm_up(copy.deepcopy(start), **settings)
    assert {name: report.curve[-1][name] for name in outcome} == outcome
    assert vitwarm.warm_up(copy.deepcopy(start), **settings, dropout=0.0).loss != report.loss


def test_a_gpt2_of_several_rates_of_dropout_needs_one():
    config = GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=50, n_positions=40, attn_pdrop=0.0)
    model, short = GPT2LMHeadModel(config), {"steps": 1, "length": 33, "val_rows": 8, "progress": False}
    several = "several rates of dropout \\(attn_pdrop 0, embd_pdrop 0.1, resid_pdrop 0.1\\).*; give dropout=RATE"
    with pytest.raises(UserError, match=several):
        vitwarm.warm_up(model, "sort", **short)
    assert vitwarm.warm_up(model, "sort", **short, dropout=0.1).steps == 1


def test_a_gpt2_of_transformers_is_warmed_as_our_decoder_is():
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=50, n_positions=40, bos_token_id=1, eos_token_id=1)
    )
    theirs.config.resid_pdrop = theirs.config.attn_pdrop = theirs.config.embd_pdrop = 0.0
    ours = build_decoder("2_2_32", 50, 40, "test", seed=0)
    tensors = from_gpt2(weights(theirs))
    tensors.pop("head.weight")
    ours.load_state_dict(tensors)
    before = weights(theirs)
    short = {"steps": 3, "global_batch": 8, "lr_warmup": "1 steps", "length": 33, "val_rows": 32, "progress": False}
    first, second = vitwarm.warm_up(theirs, "sort", **short), vitwarm.warm_up(ours, "sort", **short)
    after = from_gpt2(theirs.state_dict())
    assert not differing(ours.state_dict(), after)
    assert differing(tensors, after) == set(second.transfer.copied)
    assert differing(before, theirs.state_dict()) == set(first.transfer.copied)
    assert first.accuracy == second.accuracy


def test_the_middle_block_of_a_core_runs_as_often_as_in_the_core(quiet):
    def warmed(built: int, **settings):
        core = build_decoder("3_2_16", 9, 24, seed=0, middle_runs=built)
        vitwarm.warm_up(core, **quiet, length=24, **settings)
        return core.blocks.state_dict()

    core = warmed(4)
    assert not differing(core, warmed(1, middle_runs=4))
    assert differing(core, warmed(4, middle_runs=1))


def test_a_folder_resumes_and_no_folder_leaves_nothing(tmp_path, monkeypatch, quiet):
    monkeypatch.chdir(tmp_path)
    whole, stopped = small(), small()
    report = vitwarm.warm_up(whole, **quiet)
    assert not list(tmp_path.iterdir())
    before = weights(stopped)

    def stop(_entry):
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        vitwarm.warm_up(stopped, dir="folder", on_eval=stop, **quiet)
    assert not differing(before, stopped.state_dict())
    resumed = vitwarm.warm_up(stopped, dir="folder", **quiet)
    assert not differing(whole.state_dict(), stopped.state_dict())
    untimed = [{k: v for k, v in entry.items() if k != "seconds"} for entry in resumed.curve]
    assert untimed == [{k: v for k, v in entry.items() if k != "seconds"} for entry in report.curve]
    assert (resumed.accuracy, resumed.chance) == (report.accuracy, report.chance)
    steps = [json.loads(line)["step"] for line in (tmp_path / "folder/log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    with pytest.raises(UserError, match="another run"):
        vitwarm.warm_up(small(), dir="folder", **{**quiet, "rule": {"name": "dyck", "k": 5}})
    with pytest.raises(UserError, match="folder holds the warm-up of another model; choose another dir"):
        vitwarm.warm_up(small(depth=3), dir="folder", **quiet)
    with pytest.raises(UserError, match="holds the warm-up of another model"):
        vitwarm.warm_up(small(num_heads=1), dir="folder", **quiet)  # of the same shapes


def test_a_folder_of_0_1_has_no_chance_in_its_checkpoints(tmp_path, monkeypatch, quiet):
    model, settings = small(), {**quiet, "dir": tmp_path / "folder"}
    with monkeypatch.context() as patched:
        patched.setattr(RuleStage, "metrics", lambda stage, totals: means(totals))
        first = vitwarm.warm_up(model, **settings)
    assert "chance" not in first.curve[-1]
    assert vitwarm.warm_up(small(), **settings).chance == first.chance == vitwarm.warm_up(small(), **quiet).chance


class Imitation(rule_class("dyck")):
    """Perhaps with a `draw` of its own, which a recipe could not name."""


def test_what_cannot_be_is_refused_and_the_model_stays(quiet):
    model = small()
    before = weights(model)
    for wrong, message in (
        ({"budget": "1%"}, "warmup.budget is a share of the main stage, but there is none"),
        ({"budget": "0"}, "budget is '0'; give a length above 0"),
        ({"budget": 5}, "budget is 5; give a length above 0"),
        *(({"steps": steps}, f"steps is {steps!r}; give a whole number") for steps in (0, -3, 1.5, True, "5")),
        *(({"rule": rule}, r"rule is .*; give a name such as 'dyck'") for rule in (None, 3, [], {"k": 4}, b"dyck")),
        *(({"groups": groups}, f"groups is {groups}; give a list") for groups in (None, 3)),
        ({"groups": []}, "no tensor group; known: trunk, attention"),
        ({"groups": "attn"}, "unknown tensor group 'attn'; known: trunk, attention"),
        *(({"seed": seed}, f"seed is {seed!r}; give a whole number") for seed in ("x", 1.5, True, None)),
        ({"global_batch": 0}, r"warmup.global_batch must lie in \[1, 16777216\], not be 0"),
        ({"lr": -1}, r"warmup.lr must lie in \(0, inf\), not be -1"),
        ({"optimizer": "adammm"}, "warmup.optimizer: timm has no optimiser 'adammm'"),
        *(({name: 3}, f"{name} is 3; give a function") for name in ("on_log", "on_eval")),
        *(({"dir": folder}, f"dir is {folder!r}; give the path") for folder in (3, "")),
        ({"lr_warmup": "7 steps"}, "lr_warmup"),
        ({"global_bach": 8}, "global_batch"),
        ({"rule": "dyk"}, "dyck"),
        ({"lr": 1e30}, "not finite"),
        ({"rule": {"name": "dyck", "balanced": False, "p_open": 1.0}}, "there is nothing to predict in its sequences"),
        ({"rule": Imitation(k=3)}, "Imitation is not the rule 'dyck'; register it under a name of its own"),
        ({"rule": {"name": "shuffled", "rule": Imitation(k=3)}}, "Imitation is not the rule 'dyck'"),
        ({"groups": ["head"]}, "no tensor"),
        ({"foo": 1}, "no setting foo; they are the keys warmup"),
        ({"mask_prob": 1e-9}, "warmup.mask_prob=1e-09 masks .* tokens a step: nothing to learn from"),
    ):
        arguments = {**quiet, **wrong}
        if "budget" in wrong:
            del arguments["steps"]
        with pytest.raises(UserError, match=message) as caught:
            vitwarm.warm_up(model, **arguments)
        assert "\n" not in str(caught.value)
        assert not differing(before, model.state_dict())
    damaged = small()
    with torch.no_grad():
        damaged.blocks[0].attn.qkv.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="attn.qkv.weight holds NaN or infinity; these weights are damaged"):
        vitwarm.warm_up(damaged, **quiet)
    seen: list = []
    with pytest.raises(UserError, match="layers=2"):
        vitwarm.warm_up(model, groups="layers=2", **{**quiet, "on_log": seen.append, "on_eval": seen.append})
    assert not seen  # before anything is trained
    with pytest.raises(UserError, match="not both"):
        vitwarm.warm_up(model, budget="10 steps", **quiet)
    with pytest.raises(UserError, match="cannot be warmed up"):
        vitwarm.warm_up(timm.create_model("resnet18"), **quiet)


@pytest.mark.parametrize(
    ("settings", "rise"),
    [
        ({"budget": "1 steps"}, "0 steps"),
        ({"budget": "15 steps"}, "1 steps"),
        ({"budget": "1000 steps"}, "66 steps"),
        ({"budget": "1999 steps"}, "133 steps"),
        ({"budget": "2000 steps"}, "1000 steps"),
        ({"budget": "1000 steps", "schedule": "wsd"}, "66 steps"),
        ({"budget": "150 samples", "global_batch": 10}, "1 steps"),
        ({"budget": "4800 tokens", "global_batch": 10}, "2 steps"),  # 16 a sequence
    ],
)
def test_the_rise_of_the_learning_rate_shrinks_where_it_would_not_fit(settings, rise):
    config = build_recipe({"warmup": settings})
    _fit_schedule(config, small())
    assert config.warmup.lr_warmup == rise


def test_listeners_hear_what_the_log_would_hold_and_bars_show_steps_and_evaluations(quiet, capsys):
    logs, evals = [], []
    settings = {name: value for name, value in quiet.items() if name not in ("progress", "lr_warmup")}
    vitwarm.warm_up(small(), on_log=logs.append, on_eval=evals.append, **settings)
    shown = capsys.readouterr().err
    assert "warmup:   0%" in shown and "0/6" in shown and shown.count("warmup evaluation:   0%") == 2
    assert "0/8" in shown  # 64 sequences of validation by 8
    assert [entry["step"] for entry in logs] == [6] and {"loss", "accuracy", "lr"} <= set(logs[0])
    assert [entry["step"] for entry in evals] == [3, 6]
