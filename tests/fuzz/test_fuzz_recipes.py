"""Recipes and overrides: what YAML 1.1 reads otherwise, numbers of any size, unicode, files of any editor."""

import math
import re

import pytest
from sweeping import Case

from vitwarm.checks import value_of
from vitwarm.cli.train import Options
from vitwarm.cli.words import parse
from vitwarm.recipe import freeze, load_recipe, read_frozen

pytestmark = pytest.mark.long

# What a person who writes the text means; nothing where that is no such value. Anything else is a silent error.
INTEGERS = {
    "7": [7], "010": [10], "0777": [777], "00": [0], "0": [0], "-0": [0], "+5": [5], " 5": [5], "5 ": [5],
    "1_000": [1000], "0x10": [16], "0o10": [8], "0b11": [3], "1e3": [1000], "1E3": [1000], "5.0": [5], "1.5": [],
    "1:30": [], "190:20:30": [], "089": [89], "1,000": [1000], "1 000": [], "５": [5], "٣": [3], "½": [], "²": [],
    "-1": [], "": [], "null": [], "~": [], "true": [], "yes": [], "on": [], ".inf": [], "nan": [], ".nan": [],
    "1e999": [], "9" * 30: [int("9" * 30)], "9" * 4500: [],
    "18446744073709551616": [18446744073709551616], "2**3": [], "5 # c": [5], "'5'": [5], '"010"': [10],
    "!!int 5": [5], "!!str 5": [5], "!!python/name:os.system": [], "!!python/object/apply:os.system [true]": [],
    "&a 5": [5], "*a": [], "[5]": [], "{5}": [], "{a: 5}": [], "5\n6": [], "\t5": [5], "5\t": [5], "5:": [], "<<": [],
    "=": [], "2001-01-01": [], "2001-1-1 10:00": [], "5\u200b": [], "\ufeff5": [5], "5\x00": [], "\x1b[5m": [],
    "-": [], "--5": [], "+": [], "0_": [0], "_1": [], "1__0": [10], "0x": [], "0xg": [], "1.": [1],
    "${oc.env:HOME}": [], "${seed}": [], "???": [], "5e-1": [], "1e0": [1], "infinity": [], "١٠": [10], "1_0.0": [10],
    "0.": [0],
}  # fmt: skip
NUMBERS = {
    "1e-3": [1e-3], "1E-3": [1e-3], "1.e-3": [1e-3], ".5": [0.5], "5.": [5.0], "1e-05": [1e-5], "1.5e+2": [150.0],
    "1e3": [1e3], "010": [10.0], "010.5": [10.5], "1_0.5": [10.5], "1_000": [1000.0], "1:30.5": [], "1:30": [],
    "0x10": [16.0], "0x1p3": [], "inf": [], ".inf": [], "-.inf": [], "1e400": [], "1e-400": [], "1e308": [1e308],
    "5e-324": [5e-324], "nan": [], ".NaN": [], "1,5": [1.5], "1.2.3": [], "1d-3": [1e-3], "+1e-3": [1e-3],
    "-1e-3": [], "0": [], "-0.0": [], "1e": [], "e3": [], "1e-3%": [], "½": [], "0.001 ": [0.001], "'1e-3'": [1e-3],
    "1e-3 # x": [1e-3], "null": [], "": [], "yes": [], "1/1000": [], "10^-3": [], "1e−3": [], "1e-0x3": [],
    "٣.٥": [3.5], "0b1": [1.0], "0o7": [7.0], "1e1_0": [1e10], "1._5": [1.5], "!!float 1": [1.0], "1" * 400: [],
    "0." + "0" * 400 + "1": [], "1e-3\n": [1e-3], "[1e-3]": [], "1 e-3": [], "1e -3": [],
}  # fmt: skip
SWITCHES = {
    "true": [True], "false": [False], "True": [True], "FALSE": [False], "yes": [True], "no": [False], "on": [True],
    "off": [False], "Yes": [True], "NO": [False], "y": [True], "n": [False], "1": [True], "0": [False],
    "'true'": [True], '"no"': [False], "null": [], "": [], "2": [], "tru": [], "t": [True], "ON": [True],
    "!!bool yes": [True], "-1": [], "1.0": [True],
}  # fmt: skip
TEXTS = [
    "010", "1e3", "no", "yes", "on", "~x", "1:30", "2001-01-01", "0x10", "a: b", "# x", "a #b", "été", "日本", "'q'",
    '"q"', "*a", "&a", "!b", "%c", "@d", "`e`", "{a,b}", "[x]", "a\\nb", "-", "- a", "|", ">", "?", "null x", "=",
    "<<", ".inf", "true", "1_000", "e\u0301", "𝕏", "a,b", "x" * 3000, " a", "a ", "1.0", "0.10", "+1", "İ", "ß",
]  # fmt: skip
KINDS = {
    "seed": INTEGERS, "train.global_batch": INTEGERS, "warmup.val_rows": INTEGERS, "images.subset_seed": INTEGERS,
    "run.log_every": INTEGERS, "train.lr": NUMBERS, "train.weight_decay": NUMBERS, "images.mixup": NUMBERS,
    "run.deterministic": SWITCHES, "model.grad_checkpointing": SWITCHES, "train.decay_all": SWITCHES,
}  # fmt: skip
HEADS = [
    "",
    "# comment\n",
    "\ufeff",
    "---\n",
    "%YAML 1.1\n---\n",
    "%YAML 1.2\n---\n",
    "# été 日本\n",
    "\n\n",
    "# -*- coding: latin-1 -*-\n",
]
TAILS = ["\n", "", "\n...\n", "\n# end", "\r\n", "\n\n"]
BILLION = b"".join(  # aliases of aliases
    b"%c: &%c [%s]\n" % (97 + i, 97 + i, b",".join([b"*%c" % (96 + i) if i else b"x"] * 9)) for i in range(9)
)
BROKEN = [
    b"seed: 1\nseed: 2\n", b"train: {lr: 1.0e-3}\ntrain: {lr: 2.0e-3}\n", b"seed: 1\n---\nseed: 2\n",
    b"\xff\xfes\x00", b"seed: caf\xe9\n", b"seed: 1\x00\n", b"\x80\x04K\x01.", b"seed: [1\n",
    b"seed:\t1\n\ttrain: 2\n", b"- 1\n- 2\n", b"seed\n", b"a: &a [*a]\n", b"{" * 3000, b"[" * 3000,
    b"seed: 1\n  train:\n", b"? [a]\n: 1\n", b"1: 2\n", b"null: 1\n", b"<<: {seed: 1}\nseed: 2\n",
    b"seed: !!python/object:x.Y {}\n", b"base: nothing_such\n", b"base: tiny\n", b"base: [tiny, tiny]\n",
    b"base: 1\n", b"base: /dev/zero\n", b"base: ../../x.yaml\n", b"variants: 1\n", b"variants: {a: 1}\n",
    b"model: {args: {img_size: 2001-01-01}}\n", b"model: {args: {x: !!binary aGk=}}\n",
    b"model: {args: {x: !!set {a, b}}}\n", b"model: {args: {1: 2}}\n", b"train.lr: 1\n", b"description: 'open\n",
    b"name: a/b\n", b"name: ..\n",
    BILLION,
]  # fmt: skip
KEYS = [
    "", ".", "seed.", ".seed", "Seed", "seed ", "sееd", "train..lr", "train.lr.x", "train", "train.lr[0]", "seed\n",
    "a" * 5000, "é", "0", "__class__", "train.__init__", "run.dir.x", "model.args.", "model.args.é", "model.args.a b",
    "-seed", "--seed", "@", "\x1b[2J",
]  # fmt: skip
BASE = "recipe=digits_default"


def same(found, meant):
    return type(found) in (bool, int, float, str) and any(
        found == one and isinstance(found, bool) == isinstance(one, bool) for one in meant
    )


def loaded(key, *words):
    """The value of a key; the recipe must also be what is read back from a run folder."""

    def act():
        config = load_recipe(parse(Options, words, "vitwarm train").recipe_words)
        with open("frozen.yaml", "w", encoding="utf-8") as file:
            file.write(freeze(config))
        again = read_frozen("frozen.yaml")
        value = value_of(config, key)
        assert value_of(again, key) == value or (isinstance(value, float) and math.isnan(value)), "freeze changed it"
        return value

    return act


def make(rng, folder):
    kind = rng.choice(["override", "override", "file", "file", "text", "text in a file", "broken", "key", "twice"])
    if kind in ("override", "file"):
        key = rng.choice(list(KINDS))
        text, meant = rng.choice(list(KINDS[key].items()))
        if kind == "override":
            return Case(loaded(key, BASE, f"{key}={text}"), lambda v: same(v, meant), f"{key}={text[:60]!r}")
        *sections, leaf = key.split(".")
        head, tail = rng.choice(HEADS), rng.choice(TAILS)
        inner = f"{leaf}: {text}"
        body = f"{sections[0]}:\n  {inner}" if sections else inner
        content = f"{head}base: digits_default\n{body}{tail}"
        if rng.random() < 0.2:
            content = content.replace("\n", "\r\n")
        (folder / "tiny.yaml").write_bytes(content.encode())
        written = meant if "\n" not in text.strip("\n") else []
        return Case(loaded(key, "recipe=tiny.yaml"), lambda v: same(v, written), f"{content[:200]!r}")
    if kind == "text":
        text = rng.choice(TEXTS)
        # Letter by letter, but that a value may not begin or end in blanks that nobody sees.
        return Case(
            loaded("description", BASE, f"description={text}"),
            lambda v: v in (text, text.strip()),
            f"description={text[:60]!r}",
        )
    if kind == "text in a file":
        text, style = rng.choice(TEXTS), rng.choice(["'", '"', "|"])
        quoted = {
            "'": "'" + text.replace("'", "''") + "'",
            '"': '"' + re.sub(r'(["\\])', r"\\\1", text) + '"',
            "|": f"|-\n  {text}",
        }
        content = f"base: digits_default\ndescription: {quoted[style]}\n"
        (folder / "tiny.yaml").write_bytes(content.encode(rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16"])))
        return Case(loaded("description", "recipe=tiny.yaml"), lambda v: v in (text, text.strip()), repr(content[:200]))
    if kind == "broken":
        content = rng.choice(BROKEN)
        (folder / "tiny.yaml").write_bytes(content)
        return Case(loaded("seed", "recipe=tiny.yaml"), lambda _: False, repr(content[:100]))
    if kind == "key":
        key = rng.choice(KEYS)
        return Case(
            loaded("seed", BASE, f"{key}=1"),
            lambda v: key == "model.args.é" or (key.strip() == "seed" and v == 1),
            f"{key[:60]!r}=1",
        )
    first, second = rng.sample(["1", "2", "01", "1.0", "'1'"], 2)
    agree = float(first.strip("'")) == float(second.strip("'"))
    return Case(
        loaded("seed", BASE, f"seed={first}", f"seed={second}"),
        lambda v: agree and v == 1,
        f"seed={first} seed={second}",
    )


def test_recipes(fuzz):
    fuzz("recipes", make)
