"""Rules by name: what is refused, and in which words."""

from dataclasses import dataclass, fields

import numpy as np
import pytest

from vitwarm.procedural import Rule, list_rules, make_rule, register, rule_class


def test_every_rule_of_the_papers_is_there():
    assert set(list_rules()) >= {
        "dyck",
        "dyck_shuffle",
        "ww",
        "identity",
        "reverse",
        "sort",
        "set",
        "union",
        "delete",
        "stack",
        "eca",
        "mixture",
        "shuffled",
        "curriculum",
    }


@pytest.mark.parametrize("name", list_rules())
def test_parameters_are_described(name):
    assert all(f.metadata["help"] for f in fields(rule_class(name)))
    assert rule_class(name).name == name and rule_class(name).__doc__


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("dick", {}, r"there is no rule 'dick'; did you mean 'dyck'\?"),
        ("zzzz", {}, "there is no rule 'zzzz'; there are: curriculum, delete"),
        ("dyck", {"p_opne": 0.5}, r"dyck has no parameter 'p_opne'; did you mean 'p_open'\?"),
        ("dyck", {"k": 0}, "dyck.k must be a whole number from 1 to 30000, got 0"),
        ("dyck", {"k": 2.5}, "dyck.k must be a whole number from 1 to 30000, got 2.5"),
        ("dyck", {"k": "8"}, "dyck.k must be a whole number from 1 to 30000, got '8'"),
        ("dyck", {"k": True}, "got True"),
        ("dyck", {"k": None}, "got None"),
        ("dyck", {"p_open": 1.5}, "dyck.p_open must be a number from 0.0 to 1.0, got 1.5"),
        ("dyck", {"p_open": float("nan")}, "got nan"),
        ("dyck", {"p_open": "0.5"}, "got '0.5'"),
        ("dyck", {"max_depth": 0}, "dyck.max_depth must be a whole number of at least 1 or none, got 0"),
        ("dyck", {"balanced": 1}, "dyck.balanced must be true or false, got 1"),
        ("dyck", {"odd": "cut"}, "dyck.odd must be one of refuse, pad, got 'cut'"),
        ("stack", {"symbols": 1}, "at least 2"),
    ],
)
def test_refusals_say_what_is_allowed(name, parameters, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_rule(name, **parameters)
    assert "\n" not in str(caught.value)


def test_rules_are_values():
    a, b = make_rule("dyck", k=8), make_rule("dyck", k=np.int64(8), p_open=0.6)
    assert a == b and hash(a) == hash(b) and make_rule("dyck", p_open=1).p_open == 1.0
    assert a.spec() == {
        "name": "dyck",
        "k": 8,
        "p_open": 0.6,
        "max_depth": None,
        "balanced": True,
        "odd": "refuse",
        "min_length": None,
        "score": "closers",
    }
    nested = make_rule("mixture", rules=[a, {"name": "shuffled", "rule": "sort"}], weights=[1, 2])
    assert make_rule(**nested.spec()) == nested and hash(nested) == hash(make_rule(**nested.spec()))
    assert a.identity == '{"k": 8, "name": "dyck"}'


def test_a_name_is_registered_once():
    @dataclass(frozen=True)
    class Second(Rule):
        name = "dyck"

    with pytest.raises(ValueError, match="registered already"):
        register(Second)


RULE = """
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from vitwarm.procedural import Rule, Sequences, Vocab, register

{decorator}
@dataclass(frozen=True)
class Zeros(Rule):
    name: ClassVar[str] = "{name}"
    vocab = Vocab.of((), ("0",))

    def draw(self, rng, count, length):
        nothing = np.zeros((count, length), bool)
        return Sequences(np.full((count, length), 2), nothing, nothing)

    def solve(self, tokens, masked):
        return np.where(masked, 2, tokens)
"""
BUILT_IN = list_rules()


@pytest.mark.parametrize("decorator", ["", "@register"])
def test_an_installed_package_offers_rules(decorator, install_rules):
    run = install_rules(
        "zero-rules", {"zeros": "zero_rules:Zeros"}, {"zero_rules": RULE.format(decorator=decorator, name="zeros")}
    )
    code = """
import sys
from vitwarm.procedural import RuleStream, list_rules, make_rule
make_rule("dyck")
assert "zero_rules" not in sys.modules  # loaded when asked for
mixed = make_rule("mixture", rules=["zeros", "sort"])
print(mixed.rules[0].identity, list_rules(), RuleStream(make_rule("zeros"), 0, "train", 3).rows(0, 1).tokens.tolist())
assert not {"torch", "timm"} & set(sys.modules)
"""
    listed = sorted([*BUILT_IN, "zeros"])
    assert run(code) == (f'{{"name": "zeros"}} {listed} [[2, 2, 2]]\n', "")


def test_a_package_that_fails_is_named_and_harms_no_other(install_rules):
    install_rules(
        "late-rules",
        {"late": "late_rules:Zeros"},
        {"late_rules": RULE.format(decorator="@register", name="late") + "import nowhere"},
    )
    install_rules(
        "wrong-rules", {"wrong": "wrong_rules:Zeros"}, {"wrong_rules": RULE.format(decorator="", name="right")}
    )
    for package in ("twin-a", "twin-b"):
        install_rules(package, {"twin": "late_rules:Zeros"}, {})
    run = install_rules(
        "good-rules", {"good": "good_rules:Zeros"}, {"good_rules": RULE.format(decorator="", name="good")}
    )
    code = """
import warnings
from vitwarm.procedural import list_rules, make_rule
for name in ("late", "wrong", "twin", "gold"):
    try:
        with warnings.catch_warnings(record=True) as caught:
            make_rule(name)
    except ValueError as error:
        print(error)
print(*[w.message for w in caught], list_rules(), sep="\\n")
"""
    late = "rule 'late' of the package 'late-rules' cannot be loaded: ModuleNotFoundError: No module named 'nowhere'"
    wrong = "rule 'wrong' of the package 'wrong-rules' cannot be loaded: TypeError: "
    wrong += "wrong_rules:Zeros is not a rule named 'wrong'"
    said = run(code)[0].splitlines()
    twin = said[2]
    assert said[:2] == [late, wrong]
    assert twin.startswith("rule 'twin' is offered by the packages 'twin-") and twin.endswith("; uninstall all but one")
    assert said[3] == "there is no rule 'gold'; did you mean 'good'?"
    assert sorted(said[4:-1]) == sorted([late, wrong, twin])
    assert said[-1] == str(sorted([*BUILT_IN, "good"]))


@pytest.mark.parametrize("decorator", ["", "@register"])
def test_a_package_cannot_replace_a_rule(decorator, install_rules):
    run = install_rules(
        "other-dyck", {"dyck": "other_dyck:Zeros"}, {"other_dyck": RULE.format(decorator=decorator, name="dyck")}
    )
    code = """
import warnings
from vitwarm.procedural import list_rules, make_rule, rule_class
print(rule_class("dyck").__module__)
with warnings.catch_warnings(record=True) as caught:
    list_rules()
print(*[w.message for w in caught], rule_class("dyck").__module__, sep="\\n")
"""
    own, refusal = "vitwarm.procedural.brackets", "a rule named 'dyck' is registered already"
    refusal = f"rule 'dyck' of the package 'other-dyck' cannot be loaded: ValueError: {refusal}"
    assert run(code)[0].splitlines() == [own, refusal, own]
