"""Checks: every mistake in a recipe is one line that names the key."""

import re
from dataclasses import fields

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vitwarm.assembly import assemble
from vitwarm.checks import KEYS, SECTIONS
from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.procedural import list_rules, rule_class
from vitwarm.recipe import freeze, help_text, load_recipe, read_frozen


def refusal(arguments: list[str]) -> str:
    """The message with which the arguments are refused, in one line."""
    with pytest.raises(UserError) as error:
        load_recipe(arguments)
    message = str(error.value)
    assert message and "\n" not in message
    assert not re.search(r"full_key|object_type|DictConfig|omegaconf", message), "of OmegaConf, not of the recipe"
    return message


# The key tree


def test_every_number_has_bounds_and_lies_in_them_and_every_key_has_help():
    for key in KEYS.values():
        assert key.field.metadata["help"], key.name
        if re.match("integer|number|list of number", key.describe()):
            assert key.field.metadata["within"], f"{key.name} could be NaN or infinite"
    load_recipe(["recipe=digits_proc"])  # checks the defaults against their bounds, too


def test_help_names_every_key_and_every_parameter_of_every_rule():
    text = help_text()
    for key in KEYS.values():
        assert f"\n  {key.name}: {key.describe()} = " in text
    for rule in list_rules():
        part = re.search(rf"\n  {rule}: .+\n(?:    .+\n)*", text)
        assert part, rule
        for field in fields(rule_class(rule)):
            assert f"\n    {field.name}: " in part[0] and field.metadata["help"] in part[0]


# Mistakes


@pytest.mark.parametrize(
    "override, says",
    [
        ("model.args.in_chans=1", r"model\.args\.in_chans must lie in \[3, 3\]"),
        ("model.args.drop_path_rate=2", r"model\.args\.drop_path_rate must lie in \[0, 1\)"),
        ("model.args.drop_path_rate='0.1'", r"must lie in \[0, 1\), not be '0\.1'"),
        ("model.args.depth=1000000", r"model\.args\.depth must lie in \[1, 1000\]"),
        ("model.args.class_token='no'", r"model\.args\.class_token is the text 'no', which counts as true"),
        ("model.args.init_values=.nan", r"model\.args: nan is not finite"),
        (f"model.args.{'a.' * 400}a=1", r"model\.args has lists or mappings within each other, more than 16"),
        ("images.eval_crop_pct=1e-320", r"images\.eval_crop_pct must lie in"),
        ("model.decoder.positions=1000000000", r"model\.decoder\.positions must lie in"),
        ("train.lrr=1", r"train\.lrr; did you mean train\.lr\?"),
        ("lr=1", r"unknown key lr; did you mean warmup\.lr or train\.lr\?"),
        ("trian.lr=1", r"unknown key trian; did you mean train\?|did you mean train\.lr"),
        ("warmup.mask_probe=1", r"did you mean warmup\.mask_prob\?"),
        ("train.lr.x=1", r"train\.lr: expected number, got a mapping"),
        ("train=3", r"train is a section"),
        ("train=null", r"train is a section"),
        ("train={lr: 3, lrr: 2}", r"train\.lrr"),
        ("model.args=3", r"model\.args: expected mapping, got 3"),
        ("warmup.rule=dyck", r"warmup\.rule: expected mapping, got 'dyck'"),
        ("train.lr=abc", r"train\.lr: expected number, got 'abc'"),
        ("train.lr=null", r"train\.lr: expected number, got null"),
        ("train.lr=true", r"train\.lr: expected number"),
        ("train.lr=[1]", r"train\.lr: expected number"),
        ("train.lr=", r"train\.lr: expected number"),
        ("train.global_batch=1.5", r"train\.global_batch: expected integer, got 1\.5"),
        ("train.compile=2", r"train\.compile: expected true or false, got 2"),
        ("train.schedule=cosin", r"train\.schedule: expected one of cosine, cosine_floor, wsd, constant, got 'cosin'"),
        ("train.betas=3", r"train\.betas: expected list of number or null, got 3"),
        ("train.betas=[a,1]", r"train\.betas: expected list of number"),
        ("train.betas=[[1],1]", r"train\.betas: expected list of number"),
        ("train.betas=['???',0.1]", r"train\.betas: expected list of number"),
        ("train.betas=[0.9]", r"train\.betas takes 2 values, not 1"),
        ("train.betas=[0.9,1.0]", r"train\.betas must lie in \[0, 1\), not be 1\.0"),
        ("train.betas[0]=0.9", r"not a key"),
        ("train.lr=-1", r"train\.lr must lie in \(0, inf\)"),
        ("train.lr=.nan", r"train\.lr must lie in"),
        ("train.lr=.inf", r"train\.lr must lie in"),
        ("train.min_lr=1", r"train\.min_lr \(1\.0\) is above"),
        ("seed=-1", r"seed must lie in"),
        ("seed=???", r"seed: expected integer"),
        ("images.epochs=-1", r"images\.epochs must lie in \[0, 1000000\]"),
        ("model.num_classes=0", r"model\.num_classes must lie in"),
        ("train.global_batch=0", r"train\.global_batch must lie in"),
        ("warmup.mask_prob=0", r"warmup\.mask_prob must lie in \(0, 1\]"),
        ("warmup.mask_prob=1.1", r"warmup\.mask_prob must lie in"),
        ("images.mean=[0.5]", r"images\.mean takes 3 values"),
        ("images.std=[0,1,1]", r"images\.std must lie in"),
        ("images.scale=[1,0.5]", r"images\.scale is a range, lowest first"),
        ("images.ratio=[2,1]", r"images\.ratio is a range"),
        ("transfer.groups=[trunk,heads]", r"transfer\.groups: unknown tensor group 'heads'; known: trunk"),
        ("transfer.groups=trunk", r"transfer\.groups: expected list of"),
        ("transfer.groups=[]", r"transfer\.groups is empty"),
        ("warmup.budget=101%", r"warmup\.budget: .*100%"),
        ("warmup.budget=-1%", r"warmup\.budget: .*negative"),
        ("warmup.budget=3 epochs", r"warmup\.budget: .*no epochs"),
        ("warmup.budget=soon", r"warmup\.budget: cannot use 'soon'"),
        ("warmup.lr_warmup=3 epochs", r"warmup\.lr_warmup: .*no epochs"),
        ("train.lr_warmup=ten", r"train\.lr_warmup: cannot use 'ten'"),
        ("train.cooldown=200%", r"train\.cooldown: .*100%"),
        ("warmup.rule.kk=3", r"^warmup\.rule: .*'kk'.*'k'"),
        ("warmup.rule.k=abc", r"^warmup\.rule: .*k must be"),
        ("warmup.rule.k=0", r"^warmup\.rule: .*k must be"),
        ("warmup.rule.name=dick", r"^warmup\.rule: .*'dick'.*dyck"),
        ("warmup.rule.name=3", r"^warmup\.rule"),
        ("warmup.rule.name=null", r"^warmup\.rule\.name"),
        ("warmup.length=7", r"^warmup\.length: "),
        ("model.args.num_classes=3", r"model\.args\.num_classes .*model\.num_classes"),
        ("model.args.pretrained=true", r"init_from=timm:NAME"),
        ("model.args={1: 2}", r"model\.args: 1 is not a name"),
        ("model.args.x={a: [{2: 1}]}", r"model\.args: 2 is not a name"),
        ("model.args.x=[{a: '???'}]", r"model\.args"),
        ("model.args.x=!!binary aGk=", r"model\.args"),
        ("model.args.x=!!set {a, b}", r"model\.args"),
        ("model.args.a=[1", r"model\.args\.a: not readable as YAML"),
        ("seed=010", r"seed: 010 is not the same to all readers of YAML"),
        ("seed='5'", r"seed: expected integer, got '5'"),
        ("train.decay_all=yes", r"train\.decay_all: yes is not the same"),
        ("warmup.rule.k=0x10", r"warmup\.rule\.k: 0x10 is not the same"),
        ("run.keep_at=[1:30]", r"run\.keep_at: 1:30 is not the same"),
        ("model.args.drop_path_rate=.nan", r"model\.args: nan is not finite"),
        ("model.args.x=" + 400 * "[" + 400 * "]", r"model\.args\.x: nested too deeply"),
        ("seed=" + 4000 * "9", r"seed: 9+\.\.\. is not the same"),
        ("run.dir=r\r", r"run\.dir: 'r\\r' holds a control character"),
        ("run.dir=caf\udce9", r"run\.dir: 'caf\\udce9' holds a control character, or bytes that are not UTF-8"),
        ("seed=${oc.env:HOME}", r"seed: .*not evaluated"),
        ("model.name=${oc.env:HOME}", r"model\.name: .*not evaluated"),
        ("model.args.x=${seed}", r"model\.args: .*not evaluated"),
        ("model.args.x={a: [1, '${seed}']}", r"model\.args: .*not evaluated"),
        ("base=digits_default", r"base= belongs in a recipe file"),
        ("train", r"'train' is not an override; write key=value"),
        ("=3", r"not a key"),
        ("train..lr=3", r"not a key"),
        ("--train.lr=3", r"not a key"),
        ("recipe=digits_default", r"2 recipes"),
    ],
)
def test_refused_overrides(override, says):
    assert re.search(says, refusal(["recipe=digits_proc", override]))


def test_conflicting_overrides_are_refused():
    assert "train" in refusal(["recipe=digits_proc", "train=3", "train.lr=1"])
    assert "train" in refusal(["recipe=digits_proc", "train.lr=1", "train=3"])


def test_wsd_must_fit_into_the_stage():
    arguments = ["recipe=digits_proc", "train.schedule=wsd", "train.lr_warmup=60%", "train.cooldown=50%"]
    assert re.search(r"train\.lr_warmup and train\.cooldown together exceed 100%", refusal(arguments))


def test_null_is_a_value_of_an_optional_list():
    config = load_recipe(["recipe=digits_proc", "train.betas=null", "train.eps=null"])
    assert config.train.betas is None and config.train.eps is None
    assert "expected list" in refusal(["recipe=digits_proc", "images.mean=null"])


def test_an_initialisation_that_something_would_overwrite_is_refused():
    """Before anything is built: the sources named here are nowhere."""

    def refused(*words):
        with pytest.raises(UserError) as caught:
            assemble(load_recipe([*words]), 1)
        return str(caught.value)

    given = ["recipe=digits_default", "init_from=x"]
    assert "overwritten by init_from (transfer.groups has trunk)" in refused(*given, "model.init=mimetic")
    assert "groups has attention" in refused(*given, "model.init=conditioned", "transfer.groups=[mlp, attention]")
    assert "groups has embedding" in refused(*given, "model.init=impulse", "transfer.groups=[mlp, embedding]")
    assert "no weights at x" in refused(*given, "model.init=mimetic", "transfer.groups=[mlp, embedding]")
    assert "set warmup.budget=0" in refused("recipe=digits_proc", "model.init=impulse")
    assert "image positions" in refused("recipe=haystack_default", "model.init=impulse")
    assert "set algorithmic.task=null" in refused("recipe=haystack_default", "algorithmic.budget=0")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["transfer.groups=[layers=last:4]"], "layers=last:4: the model has 2 blocks"),
        (["transfer.groups=[heads=99]"], "heads"),
        (["transfer.groups=[head]"], "the warm-up holds no tensor of the groups head"),
        (["transfer.groups=[attention]", "transfer.controls={mlp: shuffle}"], "no source gives anything of it"),
        (["transfer.controls={layers=7: shuffle}"], "layers=7"),
    ],
)
def test_what_cannot_be_transferred_is_refused_before_the_warm_up(words, says):
    small = ["recipe=digits_proc", "model.args.depth=2", "model.args.embed_dim=24"]
    with pytest.raises(UserError, match=says):
        assemble(load_recipe([*small, *words]), 1)


@pytest.mark.parametrize(
    "word", ["model.args={depth: 9}", "model.name=vit_base_patch16_224", "images.mixup=1.0", "model.num_classes=3"]
)
def test_what_is_for_images_is_refused_for_a_decoder(word):
    key = word.partition("=")[0]
    assert f"{key} is for images, which a decoder does not see; leave it out" in refusal(["recipe=haystack_set", word])


@pytest.mark.parametrize(
    "recipe, word, says",
    [
        ("digits_proc", "text.length=64", "text.length is for stage text, but the run's is images"),
        ("cifar10_small", "algorithmic.size=5", "algorithmic.size is for stage algorithmic, but the run's is images"),
        ("haystack_set", "text.tokenizer=chars", "text.tokenizer is for stage text, but the run's is algorithmic"),
    ],
)
def test_keys_of_another_main_stage_are_refused(recipe, word, says):
    assert says in refusal([f"recipe={recipe}", word])
    load_recipe([f"recipe={recipe}", "images.train=", "algorithmic.task=null", word, "warmup.budget=10 steps"])  # waits


def test_a_share_needs_an_image_stage_and_a_run_needs_a_stage():
    assert "there is none" in refusal(["recipe=digits_proc", "images.train=", "warmup.budget=1%"])
    assert "nothing to train" in refusal(["recipe=digits_default", "images.train="])
    assert load_recipe(["recipe=digits_proc", "images.train=", "warmup.budget=10 steps"]).images.train == ""


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["???", "${seed}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted({*KEYS, *SECTIONS})), JUNK)
def test_any_junk_under_any_key_is_a_recipe_or_one_line(tmp_path_factory, key, junk):
    tree: object = junk
    for part in reversed(key.split(".")):
        tree = {part: tree}
    path = tmp_path_factory.getbasetemp() / "junk.yaml"
    path.write_text(yaml.safe_dump({"images": {"train": "x"}} | tree))
    try:
        config = load_recipe([f"recipe={path}"])
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert type(config) is Config
        path.write_text(freeze(config))
        assert freeze(read_frozen(path)) == path.read_text()  # as text: NaN is not equal to itself
