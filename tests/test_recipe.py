"""Recipes: found, inherited, overridden, frozen and hashed by their laws, and a bad file is one line that names it."""

import json
import os
import re
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path
from random import Random

import numpy as np
import pytest
import yaml

from vitwarm.amounts import Amount
from vitwarm.checks import KEYS, check_tree, value_of
from vitwarm.config import Config, ModelConfig, WandbConfig
from vitwarm.errors import UserError
from vitwarm.procedural import make_rule
from vitwarm.recipe import (
    NOT_IDENTITY,
    build_recipe,
    freeze,
    list_recipes,
    load_recipe,
    read_frozen,
    recipe_hash,
    recipe_text,
    recipes_folder,
)

HASHES = json.loads((Path(__file__).parent / "recipe_hashes.json").read_text())  # of version 0.1
TINY = {
    "haystack": ("default", "dyck", "shuffled", "set", "set_attention", "identity", "identity_attention"),
    "addition": ("default", "set", "eca"),
    "reversed_addition": ("default", "set", "eca"),
    "sorting": ("default", "set"),
    "multiplication": ("default", "union"),
}
CHANGED = {  # shipped recipes whose experiment is another than in recipe_hashes.json, and why
    f"deit3_{size}_{arm}": "LAMB and its published learning rate in place of AdamW"
    for size in "bsl"
    for arm in ("default", "proc1pct")
} | {
    f"{task}_{arm}": "clipping at 1 in both stages and 100 positions, as the public code of arXiv 2505.22308 has them"
    for task, arms in TINY.items()
    for arm in arms
}
CHANGED["core_vit_small"] = "ten times as many steps, whose core, halved, helps where that of 1,000 did not"
ROWS = list_recipes()
SHIPPED = [name for name, _, _ in ROWS]


@cache
def shipped(name: str) -> Config:
    """A shipped recipe, read once for all tests that only look at it."""
    return load_recipe([f"recipe={name}"])


@pytest.fixture
def write(tmp_path):
    """Writes a recipe file and returns its `recipe=` argument."""

    def write(text: str, name: str = "mine") -> str:
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return f"recipe={path}"

    return write


def refusal(arguments: list[str]) -> str:
    with pytest.raises(UserError) as error:
        load_recipe(arguments)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


# Shipped recipes


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_load_and_say_what_they_are_for(name):
    config = shipped(name)
    assert type(config) is Config and type(config.model) is ModelConfig
    assert config.name == name
    _, path, purpose = next(row for row in ROWS if row[0] == name)
    assert purpose == config.description, "own purpose"
    recipe, _, variants = path.read_text().partition("\nvariants:")
    header = recipe.split("\n\n")[0]
    assert all(f"# {part}" in header for part in ("Expected", "Cost", "Command"))
    assert f"recipe={path.stem}" in header
    if name != path.stem:
        before, declared, _ = variants.partition(f"\n  {name}:\n")
        assert declared and "Expected  " in before


@pytest.mark.parametrize("name", sorted(HASHES.keys() | set(SHIPPED)))
def test_shipped_recipes_keep_their_names_and_hashes(name):
    """Run folders of version 0.1 bear them."""
    assert (recipe_hash(shipped(name)) == HASHES.get(name)) == (name not in CHANGED)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_text_of_a_shipped_recipe_is_the_same_recipe_anywhere(name, write):
    copied, original = load_recipe([write(recipe_text(name))]), shipped(name)
    assert copied == replace(original, name="mine") and copied.description


def test_no_text_without_a_name():
    with pytest.raises(UserError, match="did you mean digits_default"):
        recipe_text("digit_default")


def test_a_key_of_a_later_version_counts_only_where_it_is_used():
    before = recipe_hash(load_recipe(["recipe=digits_proc"]))
    for override in ("train.optimizer=adamw", "warmup.optimizer_args={}"):
        assert recipe_hash(load_recipe(["recipe=digits_proc", override])) == before
    keys = ("optimizer=lamb", "optimizer_args.foreach=false")
    used = [f"{stage}.{key}" for stage in ("warmup", "train") for key in keys]
    found = {recipe_hash(load_recipe(["recipe=digits_proc", override])) for override in used}
    assert len(found | {before}) == len(used) + 1


def test_names_of_shipped_recipes_are_unique():
    assert len(set(SHIPPED)) == len(SHIPPED) >= 8
    others = {"budgets", "lab", "accelerate"}
    files = {
        path for path in recipes_folder().rglob("*.yaml") if path.relative_to(recipes_folder()).parts[0] not in others
    }
    assert files == {path for _, path, _ in list_recipes()}
    assert {path.stem for path in files} < set(SHIPPED)


@pytest.mark.parametrize(
    "warmed, default",
    [
        ("digits_proc", "digits_default"),
        ("cifar10_vit_t_proc", "cifar10_vit_t_default"),
        ("vit_b_proc1pct", "vit_b_default"),
        ("deit_b_proc1pct", "deit_b_default"),
        ("deit3_b_proc1pct", "deit3_b_default"),
        ("vit_s_90ep_proc1pct", "vit_s_90ep_default"),
        *((f"{name}_proc1pct", f"{name}_default") for name in ("vit_t", "vit_s", "vit_l", "deit_t", "deit_s")),
        *((f"{name}_proc1pct", f"{name}_default") for name in ("deit3_s", "deit3_l")),
    ],
)
def test_a_control_differs_by_the_warm_up_alone(warmed, default):
    warmed, default = load_recipe([f"recipe={warmed}"]), load_recipe([f"recipe={default}"])
    differing = {name for name in KEYS if value_of(warmed, name) != value_of(default, name)}
    assert differing == {"name", "description", "warmup.budget"}
    assert default.warmup.budget == "0"


def test_the_papers_settings():
    """arXiv 2511.13945 as the public sources have it; the numbers are written here a second time on purpose."""
    config = load_recipe(["recipe=vit_b_proc1pct"])
    warmup, images, train = config.warmup, config.images, config.train
    assert (warmup.rule["name"], warmup.rule["k"], warmup.rule["p_open"]) == ("dyck", 64, 0.6)
    assert (warmup.global_batch, warmup.budget, warmup.mask_prob) == (256, "15000 steps", 0.5)
    assert (warmup.lr, warmup.start_lr, warmup.min_lr, warmup.lr_warmup) == (2e-3, 1e-7, 1e-6, "1000 steps")
    assert (warmup.weight_decay, warmup.decay_all, warmup.betas) == (0.05, True, [0.9, 0.999])
    assert (warmup.clip_grad, warmup.precision, warmup.schedule) == (None, "fp32", "cosine")
    assert (train.global_batch, train.lr, images.epochs, train.lr_warmup) == (4096, 4e-3, 300, "50 epochs")
    assert (images.mixup, images.cutmix, images.label_smoothing, images.random_erasing) == (0.8, 1.0, 0.1, 0.25)
    assert images.auto_augment == "rand-m9-mstd0.5-inc1"
    small, tiny = load_recipe(["recipe=vit_s_proc1pct"]), load_recipe(["recipe=vit_t_proc1pct"])
    for other in (small, tiny):
        assert {name for name in KEYS if value_of(other, name) != value_of(config, name)} == {
            "name",
            "description",
            "model.name",
        }
    assert (small.model.name, tiny.model.name) == ("vit_small_patch16_224", "vit_tiny_patch16_224")


def settings(name: str, *keys: str) -> list:
    config = load_recipe([f"recipe={name}"])
    return [value_of(config, key) for key in keys]


LENGTH = ("images.epochs", "train.global_batch", "train.lr", "train.lr_warmup", "train.min_lr", "train.weight_decay")
MIX = ("images.repeats", "images.auto_augment", "images.mixup", "images.cutmix", "images.random_erasing")


def test_deits_settings():
    """arXiv 2012.12877 and the defaults of its public main.py; 5e-4 is its rate at a batch of 512."""
    for size, model in (("b", "vit_base"), ("s", "vit_small"), ("t", "vit_tiny")):
        assert settings(f"deit_{size}_proc1pct", *LENGTH) == [300, 1024, 2 * 5e-4, "5 epochs", 1e-5, 0.05]
        assert settings(f"deit_{size}_proc1pct", *MIX) == [3, "rand-m9-mstd0.5-inc1", 0.8, 1.0, 0.25]
        assert settings(f"deit_{size}_proc1pct", "images.loss", "images.label_smoothing") == ["ce", 0.1]
        assert settings(f"deit_{size}_proc1pct", "model.args") == [{"drop_path_rate": 0.1}]
        assert settings(f"deit_{size}_proc1pct", "model.name") == [f"{model}_patch16_224"]


def test_deit3s_settings():
    """arXiv 2204.07118, its learning rate for all sizes, and the training commands in its public README_revenge.md."""
    for size, (model, pixels, drop_path) in {
        "b": ("base", 192, 0.2),
        "s": ("small", 224, 0.05),
        "l": ("large", 192, 0.45),
    }.items():
        assert settings(f"deit3_{size}_proc1pct", *LENGTH) == [800, 2048, 3e-3, "5 epochs", 1e-5, 0.05]
        assert settings(f"deit3_{size}_proc1pct", "train.optimizer", "train.eps") == ["lamb", 1e-8]
        assert settings(f"deit3_{size}_proc1pct", *MIX, "images.color_jitter") == [3, "3a", 0.8, 1.0, 0.0, 0.3]
        assert settings(f"deit3_{size}_proc1pct", "images.loss", "images.label_smoothing") == ["bce", 0.0]
        args = {"img_size": pixels, "init_values": 1e-4, "drop_path_rate": drop_path}
        assert settings(f"deit3_{size}_proc1pct", "model.args") == [args]
        assert settings(f"deit3_{size}_proc1pct", "model.name") == [f"deit3_{model}_patch16_224"]


def test_big_visions_settings():
    """Its public configs/vit_s16_i1k.py; its decoupled weight decay of 1e-4 is AdamW's 1e-4 / 1e-3."""
    assert settings("vit_s_90ep_proc1pct", *LENGTH) == [90, 1024, 1e-3, "10000 steps", 0.0, 1e-4 / 1e-3]
    assert settings("vit_s_90ep_proc1pct", *MIX) == [1, "rand-m10-n2", 0.2, 0.0, 0.0]
    keys = ("train.clip_grad", "images.label_smoothing", "images.mean", "model.args")
    assert settings("vit_s_90ep_proc1pct", *keys) == [1.0, 0.0, [0.5] * 3, {"class_token": False, "global_pool": "avg"}]


def test_the_page_on_recipes_lists_them_all_and_speaks_of_real_keys():
    page = (recipes_folder().parent / "docs/recipes.md").read_text()
    listed = re.findall(r"^\| \[`(\w+)`\]\(../recipes/(.+?)\)", page, re.M)
    assert sorted(listed) == sorted((name, str(path.relative_to(recipes_folder()))) for name, path, _ in list_recipes())
    overrides = re.findall(r"\b((?:model|warmup|images|train|run|transfer)\.\w+(?:\.\w+)*)=", page)
    assert overrides and all(any(key == name or key.startswith(name + ".") for name in KEYS) for key in overrides)
    for written in re.findall(r"^\| (`.+?) \| .+ \|$", page.split("## Amounts")[1].split("##")[0], re.M):
        for amount in re.findall("`(.+?)`", written):
            Amount.parse(amount)


# Layers


def test_defaults_then_ancestors_then_recipe_then_command_line(write):
    write("train: {lr: 1, min_lr: 0.1, eps: 0.1, betas: [0.1, 0.2]}\nimages: {train: x}", "grand")
    write("base: grand\ntrain: {lr: 2, min_lr: 0.2, betas: [0.3, 0.4]}", "parent")
    train = load_recipe([write("base: parent\ntrain: {lr: 3}"), "train.betas=[0.5, 0.6]"]).train
    assert (train.lr, train.min_lr, train.eps, train.betas, train.weight_decay) == (3.0, 0.2, 0.1, [0.5, 0.6], 0.05)


@pytest.mark.parametrize("base", ["parent", "parent.yaml", "./parent.yaml", "../{folder}/parent.yaml"])
def test_a_base_is_found_by_name_or_relative_path_from_anywhere(write, tmp_path, base, monkeypatch):
    monkeypatch.chdir("/")
    write("seed: 7\nimages: {train: x}", "parent")
    assert load_recipe([write(f"base: {base.format(folder=tmp_path.name)}")]).seed == 7


def test_a_users_recipe_inherits_a_shipped_one(write):
    config = load_recipe([write("base: digits_default\nseed: 5")])
    assert (config.seed, config.name) == (5, "mine")
    assert config.images == load_recipe(["recipe=digits_default"]).images


def args_of(argument: str) -> dict:
    return load_recipe([argument]).model.args


def test_of_two_parents_the_later_wins_and_the_recipe_over_both(write):
    write("images: {train: x}\nmodel: {args: {a: 1, both: 1, all: 1}}", "one")
    write("model: {args: {b: 2, both: 2, all: 2}}", "two")
    args = args_of(write("base: [one, two]\nmodel: {args: {all: 3}}"))
    assert args == {"a": 1, "b": 2, "both": 2, "all": 3}


def test_what_two_parents_inherit_undoes_nothing_that_one_of_them_says(write):
    write("images: {train: x}\nmodel: {args: {a: 0, b: 0, c: 0}}", "root")
    write("base: root\nmodel: {args: {a: 1}}", "one")
    write("base: root\nmodel: {args: {b: 2}}", "two")
    for base in ("[one, two]", "[two, one]", "[root, one, two]"):
        assert args_of(write(f"base: {base}")) == {"a": 1, "b": 2, "c": 0}


def test_the_laws_of_inheritance_hold_in_any_family(write):
    """In random families each recipe sets a key of its own, and for each pair a key that both of the pair set."""
    random, refused, size = Random(0), 0, 6
    for family in range(40):
        bases, ancestors = [], []
        for child in range(size):
            base = random.sample(range(child), k=random.randint(0, min(child, 3)))
            bases.append(base)
            ancestors.append({child}.union(*(ancestors[parent] for parent in base)))
            keys = {f"own{child}": child}
            keys |= {f"pair{a}{b}": child for a, b in combinations(range(size), 2) if child in (a, b)}
            names = [f"f{family}r{parent}" for parent in base]
            tree = {"base": names, "images": {"train": "x"}, "model": {"args": keys}}
            argument = write(yaml.safe_dump(tree), f"f{family}r{child}")
        lists = [base for child, base in enumerate(bases) if child in ancestors[-1]]
        try:
            args = args_of(argument)
        except UserError as error:
            assert re.search(r"base: f\d+r\d already applies before f\d+r\d", str(error))
            refused += 1
            continue
        assert {args[key] for key in args if key.startswith("own")} == ancestors[-1]
        for low, high in combinations(sorted(ancestors[-1]), 2):
            if low in ancestors[high]:
                assert args[f"pair{low}{high}"] == high, "a recipe overrides its ancestors"
        for first, second in (pair for base in lists for pair in combinations(base, 2)):
            assert args[f"pair{min(first, second)}{max(first, second)}"] == second, "the later parent wins"
    assert 0 < refused < 30


@pytest.mark.parametrize("base", ["[two, one]", "[one, one]", "[three, two]"])
def test_parents_whose_later_one_cannot_win_are_refused(write, base):
    write("seed: 1", "one")
    write("base: one", "two")
    write("base: [one, two]", "three")
    assert re.search(r"mine\.yaml: base: (one|two) already applies before", refusal([write(f"base: {base}")]))


def test_the_rules_of_two_parents_merge_as_layers_do(write):
    write("images: {train: x}\nwarmup: {rule: {name: dyck, k: 7, p_open: 0.3}, length: 8}", "one")
    write("warmup: {rule: {k: 9}}", "two")
    write("warmup: {rule: {name: ww}}", "three")
    rule = load_recipe([write("base: [one, two]")]).warmup.rule
    assert (rule["name"], rule["k"], rule["p_open"]) == ("dyck", 9, 0.3)
    assert load_recipe([write("base: [one, two, three]")]).warmup.rule == make_rule("ww").spec()


STUDY = """
images: {train: x}
seed: 1
variants:
  small: {seed: 2, description: a variant, model: {args: {depth: 3}}}
  smaller: {base: small, model: {args: {embed_dim: 8}}}
  both: {base: [other, smaller], train: {lr: 4}}
"""


def test_a_variant_inherits_its_file_and_then_its_own_parents(write):
    write("seed: 7\ntrain: {lr: 7, min_lr: 0.7}", "other")
    path = write(STUDY, "study")
    assert (load_recipe([path]).seed, load_recipe([path]).model.args) == (1, {})
    small = load_recipe([f"{path}:small"])
    assert (small.name, small.description, small.seed, small.images.train) == ("small", "a variant", 2, "x")
    both = load_recipe([f"{path}:both"])
    assert (both.seed, both.train.lr, both.train.min_lr) == (2, 4.0, 0.7)
    assert both.model.args == {"depth": 3, "embed_dim": 8}


def test_a_variant_is_a_base(write):
    path = write(STUDY, "folder/study")
    config = load_recipe([write("base: folder/study.yaml:small\ntrain: {lr: 3}")])
    assert (config.name, config.seed, config.train.lr) == ("mine", 2, 3.0)
    assert replace(config, name="", train=Config().train) == replace(load_recipe([f"{path}:small"]), name="")


def test_another_rule_does_not_inherit_the_parents_parameters(write):
    write("images: {train: x}\nwarmup: {rule: {name: dyck, k: 7, p_open: 0.3}, length: 8}", "parent")
    same = load_recipe([write("base: parent\nwarmup: {rule: {k: 9}}")]).warmup.rule
    assert (same["k"], same["p_open"]) == (9, 0.3)
    named = load_recipe([write("base: parent\nwarmup: {rule: {name: dyck, k: 9}}")]).warmup.rule
    assert named == same
    for other in ("dyck_shuffle", "ww"):  # the first has a k and a p_open of its own
        rule = load_recipe([write("base: parent"), f"warmup.rule.name={other}"]).warmup.rule
        assert rule == make_rule(other).spec()


def test_a_rule_within_a_rule_merges_likewise(write):
    write("images: {train: x}\nwarmup: {rule: {name: shuffled, rule: {name: dyck, k: 7, p_open: 0.3}}}", "parent")
    same = load_recipe([write("base: parent"), "warmup.rule.rule.k=9"]).warmup.rule
    assert (same["name"], same["rule"]["k"], same["rule"]["p_open"]) == ("shuffled", 9, 0.3)
    other = load_recipe([write("base: parent"), "warmup.rule.rule.name=ww"]).warmup.rule
    assert (other["name"], other["rule"]) == ("shuffled", make_rule("ww").spec())


def test_model_args_merge(write):
    write("images: {train: x}\nmodel: {args: {img_size: 8, depth: 6}}", "parent")
    args = load_recipe([write("base: parent\nmodel: {args: {depth: 3}}"), "model.args.qkv_bias=false"]).model.args
    assert args == {"img_size": 8, "depth": 3, "qkv_bias": False}


def test_overrides_of_one_mapping_merge_in_any_order():
    words = ["warmup.rule.k=8", "warmup={budget: 5 steps}", "warmup.rule={name: dyck, p_open: 0.5}"]
    pairs = {"warmup.rule.k": 8, "warmup": {"budget": "5 steps", "rule": {"name": "dyck", "p_open": 0.5}}}
    configs = [load_recipe([*words, "recipe=digits_proc"]), load_recipe(["recipe=digits_proc", *reversed(words)])]
    configs += [build_recipe(dict(order), "digits_proc") for order in (pairs.items(), reversed(pairs.items()))]
    for config in configs:
        assert (config.warmup.rule["k"], config.warmup.rule["p_open"], config.warmup.budget) == (8, 0.5, "5 steps")
    for given, said in (
        ({"images": 5, "images.epochs": 1}, "images.epochs: images is given twice"),
        ({"images.epochs": 1, "images": {"epochs": 2}}, "images.epochs is given twice, as 2"),
    ):
        with pytest.raises(UserError, match=said):
            build_recipe(given)


def test_values_of_python_become_plain_data():
    config = build_recipe(
        {
            "warmup.lr": np.float32(0.5), "warmup.global_batch": np.int64(4), "train.betas": (0.9, 0.95),
            "images.train": Path("/data/x.tar"), "run.deterministic": np.True_,
            "warmup.rule": {"name": "mixture", "rules": (make_rule("dyck", k=3), {"name": "set"})},
        }
    )  # fmt: skip
    assert (config.warmup.lr, config.warmup.global_batch, config.train.betas) == (0.5, 4, [0.9, 0.95])
    assert (config.images.train, config.run.deterministic) == ("/data/x.tar", True)
    assert config.warmup.rule["rules"] == [make_rule("dyck", k=3).spec(), make_rule("set").spec()]
    assert build_recipe(yaml.safe_load(freeze(config))) == config


@pytest.mark.parametrize(
    "words",
    [
        ("train={lr: 1}", "train.lr=2"),
        ("train.lr=2", "train={lr: 1}"),
        ("model.args={depth: 3}", "model.args.depth=2"),
        ("train={compile: true}", "train.compile=1"),
    ],
)
def test_an_override_that_contradicts_another_is_refused(words):
    assert re.search(r"is given twice, as .* and as part of another override", refusal(["recipe=digits_proc", *words]))


def test_of_two_overrides_the_last_counts():
    """In Python; test_words.py has the command line, which refuses them."""
    assert load_recipe(["seed=1", "recipe=digits_proc", "seed=2"]).seed == 2
    assert load_recipe(["recipe=digits_proc", "train={lr: 1}", "train.lr=1"]).train.lr == 1


@pytest.mark.parametrize(
    "text",
    [
        "*.tar",
        "{a,b}/x-{000..009}.tar",
        "2024-01-01",
        "007",
        "a: b",
        "x#y",
        "x #y",
        "[1]",
        "off",
        "a=b",
        "'q'",
    ],
)
def test_text_is_taken_letter_by_letter(text):
    config = load_recipe(["recipe=digits_proc", f"images.train={text}", f"transfer.sources.mlp={text}"])
    assert config.images.train == config.transfer.sources["mlp"] == text


def test_values_take_the_keys_type():
    config = load_recipe(
        [
            "recipe=digits_proc",
            "train.lr=1e-3",
            "train.clip_grad=1",
            "train.ema=null",
            "run.dir=null",
            "warmup.budget=3840000",
            "train.compile=true",
            "transfer.groups=[norm,mlp]",
        ]
    )
    assert (config.train.lr, config.train.clip_grad, config.train.ema, config.run.dir) == (1e-3, 1.0, None, None)
    assert (config.warmup.budget, config.train.compile, config.transfer.groups) == ("3840000", True, ["norm", "mlp"])


# Bad files


def test_a_section_has_a_short_form_everywhere(write):
    """`run.wandb=PROJECT` in a file, on the command line and in Python, beside the section's keys and over them."""
    file = write("base: digits_proc\nrun: {wandb: mine, workers: 0}\n")
    more = ["run.wandb.entity=team", "run.wandb.group=g", "run.wandb.tags=[a, b]"]
    full = WandbConfig("mine", "team", "g", ["a", "b"])
    assert load_recipe([file]).run.wandb == WandbConfig("mine")
    assert load_recipe([file, *more]).run.wandb == full
    assert load_recipe([file, "run.wandb=null"]).run.wandb == WandbConfig()
    for words in (["run.wandb=123", *more], [*more, "run.wandb=123"]):
        assert load_recipe(["recipe=digits_proc", *words]).run.wandb == replace(full, project="123")
    assert load_recipe(["recipe=digits_proc", "run.wandb={project: mine, tags: [a]}"]).run.wandb.tags == ["a"]
    for tree in (
        {"run.wandb": "mine", "run.wandb.entity": "team"},
        {"run": {"wandb": "mine"}, "run.wandb.entity": "team"},
    ):
        assert build_recipe(tree | {"warmup.budget": "9"}).run.wandb == WandbConfig("mine", "team")
    config = load_recipe([file, *more])
    assert config.run.workers == 0 and recipe_hash(config) == recipe_hash(shipped("digits_proc"))
    assert "run.wandb has no project" in refusal(["recipe=digits_proc", *more])
    assert "run.wandb.project: expected text or null" in refusal([write("base: digits_proc\nrun: {wandb: [a]}\n")])


def test_which_recipe():
    assert "recipe=NAME" in refusal([])
    assert "recipe=NAME" in refusal(["train.lr=1"])
    assert "did you mean digits_proc?" in refusal(["recipe=digit_proc"])
    assert "no recipe file nowhere.yaml" in refusal(["recipe=nowhere.yaml"])


@pytest.mark.parametrize(
    "text, says",
    [
        ("seed: 1\nseed: 2\n", r"mine\.yaml, line 2: the key seed is there twice"),
        ("seed: [1\n", r"mine\.yaml, line 2: not readable"),
        ("model:\n\tname: x\n", r"mine\.yaml, line 2: not readable"),
        ("seed: !!python/object/apply:os.getpid []\n", r"mine\.yaml, line 1: not readable"),
        ("- 1\n", r"mine\.yaml: holds a list, not a mapping"),
        ("3\n", r"mine\.yaml: holds a int, not a mapping"),
        ("train.lr: 3\n", r"mine\.yaml: train\.lr: in a file each section is a mapping; train: {lr: "),
        ("name: 1.10\n", r"mine\.yaml: name: expected text, got 1\.1"),
        ("name: ../x\n", r"name: '\.\./x' becomes part of a folder's name"),
        ("seed: 1\x00\n", r"mine\.yaml: not readable"),
        ("seed: ${\n", r"mine\.yaml"),
        ("seed: ${oc.env:HOME}\n", r"mine\.yaml: seed: .*not evaluated"),
        ("1: 2\n", r"mine\.yaml: unknown key 1"),
        ("train: {lrr: 2}\n", r"mine\.yaml: unknown key train\.lrr; did you mean train\.lr\?"),
        ("train:\n", r"mine\.yaml: train is a section"),
        ("train: {lr: {a: 1}}\n", r"mine\.yaml: train\.lr: expected number"),
        ("train: {lr: abc}\n", r"mine\.yaml: train\.lr: expected number, got 'abc'"),
        ("images: {auto_augment: off}\n", r"mine\.yaml, line 1: off is not the same to all readers"),
        ("base: [1]\n", r"mine\.yaml: base is the name or the path of a recipe, or a list"),
        ("base: {a: b}\n", r"mine\.yaml: base is the name or the path of a recipe, or a list"),
        ("base: [digits_proc, digit_proc]\n", r"mine\.yaml: base: .*did you mean digits_proc"),
        ("base: [digits_proc, mine]\n", r"inherit from itself"),
        ("base: mine.yaml:a\nvariants: {a: {}}\n", r"inherit from itself"),
        ("base: mine.yaml:b\nvariants: {a: {}}\n", r"mine\.yaml: no variant 'b'"),
        ("variants: [a]\n", r"mine\.yaml: variants are recipes by their names"),
        ("variants: {a: 3}\n", r"mine\.yaml: variants: write NAME"),
        ("variants: {a.b: {}}\n", r"mine\.yaml: variants: write NAME"),
        ("base: mine\n", r"inherit from itself"),
        ("base: digit_proc\n", r"mine\.yaml: base: .*did you mean digits_proc"),
        ("base: gone.yaml\n", r"mine\.yaml: base: no recipe file .*gone\.yaml"),
    ],
)
def test_refused_files(write, text, says):
    assert re.search(says, refusal([write(text)]))


@pytest.mark.parametrize(
    "text, says",
    [
        ("{train: {lrr: 2}}", r"mine\.yaml:small: unknown key train\.lrr"),
        ("{seed: '${oc.env:HOME}'}", r"mine\.yaml:small: seed: .*not evaluated"),
        ("{variants: {a: {}}}", r"mine\.yaml:small: unknown key variants"),
        ("{base: small}", r"mine\.yaml:small: base leads back"),
        ("{base: [1]}", r"mine\.yaml:small: base is the name"),
        ("{base: gone.yaml}", r"mine\.yaml:small: base: no recipe file .*gone\.yaml"),
        ("{base: mine.yaml}", r"mine\.yaml:small: base: mine already applies before mine"),
    ],
)
def test_refused_variants(write, text, says):
    assert re.search(says, refusal([write(f"variants: {{small: {text}}}") + ":small"]))
    assert "did you mean small?" in refusal([write("variants: {small: {}}") + ":smal"])


def test_a_cycle_of_two_is_refused(write):
    write("base: mine", "other")
    assert "inherit from itself" in refusal([write("base: other")])


def test_unreadable_files(write, tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    assert "folder.yaml" in refusal([f"recipe={tmp_path}/folder.yaml"])
    (tmp_path / "latin.yaml").write_bytes(b"description: caf\xe9\n")
    assert "latin.yaml: not UTF-8 text" in refusal([f"recipe={tmp_path}/latin.yaml"])
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "pipe.yaml: not a regular file" in refusal([f"recipe={tmp_path}/pipe.yaml"])


def read_back(text: str, write) -> Config:
    return read_frozen(write(text, "frozen/recipe").removeprefix("recipe="))


# Freeze and hash


def test_secrets_of_addresses_are_not_frozen_and_no_part_of_the_identity(tmp_path):
    """A run goes on when its addresses were signed anew."""
    train = "images.train=https://host/train-{000..009}.tar?part=%s&X-Amz-Signature=%s"
    first, again, other = (
        load_recipe(["recipe=digits_proc", train % which]) for which in (("1", "ab"), ("1", "cd"), ("2", "ab"))
    )
    assert first.images.train.endswith("=ab") and "=ab" not in freeze(first)
    assert recipe_hash(first) == recipe_hash(again) != recipe_hash(other)
    (tmp_path / "recipe.yaml").write_text(freeze(first), encoding="utf-8")
    assert recipe_hash(read_frozen(tmp_path / "recipe.yaml")) == recipe_hash(first)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_frozen_recipe_reads_back_equal_and_runs_as_a_recipe(name, write):
    for_images = [] if load_recipe([f"recipe={name}"]).model.decoder.size else ["model.args.x=1e-3"]
    more = ["run.dir=007", "train.min_lr=1e-7", "init_from=null", "transfer.fit=exact", *for_images]
    config = load_recipe([f"recipe={name}", *more])
    text = freeze(config)
    assert recipe_hash(config) in text.splitlines()[0]
    tree = yaml.safe_load(text)
    check_tree(tree)
    assert set(KEYS) == {name for name in KEYS if _has(tree, name)}, "every key is written"
    frozen = read_back(text, write)
    assert frozen == config and recipe_hash(frozen) == recipe_hash(config) and freeze(frozen) == text
    assert load_recipe([write(text, "frozen/recipe")]) == config


def _has(tree: dict, name: str) -> bool:
    for part in name.split("."):
        if part not in tree:
            return False
        tree = tree[part]
    return True


@pytest.mark.parametrize("name", sorted(KEYS))
def test_the_hash_knows_every_key_that_shapes_the_result_and_no_other(name):
    config = load_recipe(["recipe=digits_proc"])
    before = recipe_hash(config)
    assert re.fullmatch("[0-9a-f]{12}", before)
    *sections, leaf = name.split(".")
    section = config
    for part in sections:
        section = getattr(section, part)
    setattr(section, leaf, _another(KEYS[name], getattr(section, leaf)))
    same = name in NOT_IDENTITY or (name.startswith("run.") and name != "run.smoke")
    assert (recipe_hash(config) == before) == same


def _another(key, value):
    """A different value of the key's type."""
    described = key.describe().removesuffix(" or null")
    if described.startswith("one of"):
        return next(option for option in described.removeprefix("one of ").split(", ") if option != value)
    if described == "integer":
        return (value or 0) + 1
    if described == "true or false":
        return not value
    if described.startswith(("list of one of", "list of text")):
        return [*value, "head"]
    if described.startswith("list"):
        return [number / 2 for number in value]
    if described == "mapping":
        return {**value, "k": 5}
    return {"number": 0.0625, "text": "7 steps"}[described]


def test_the_hash_does_not_depend_on_how_a_value_was_written(write):
    same = [
        write("warmup: {rule: {k: 64}}\nimages: {train: x, epochs: 300}", "a"),
        write("images: {epochs: 3.0e+2, train: 'x'}", "b"),
        write("seed: 0\nimages: {train: x}\nwarmup: {rule: {p_open: 0.6, name: dyck}}", "c"),
    ]
    assert len({recipe_hash(load_recipe([argument])) for argument in same}) == 1
    config = replace(Config(), images=replace(Config().images, train="x"))
    assert recipe_hash(config) == recipe_hash(load_recipe(same[:1])), "also without a file"


def test_a_frozen_recipe_that_was_damaged_is_refused(tmp_path):
    path = Path(tmp_path / "recipe.yaml")
    path.write_text(freeze(load_recipe(["recipe=digits_proc"])).replace("  lr: 0.001", "  lr: [", 1), encoding="utf-8")
    with pytest.raises(UserError, match=r"recipe\.yaml, line \d+: not readable"):
        read_frozen(path)
    with pytest.raises(UserError, match="gone.yaml: cannot be read"):
        read_frozen(tmp_path / "gone.yaml")
