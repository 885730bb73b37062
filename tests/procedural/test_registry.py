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
