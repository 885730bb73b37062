"""A rule that a command line describes: rule=NAME and PARAMETER=VALUE words."""

from typing import TYPE_CHECKING, Any

from vitwarm.errors import UserError
from vitwarm.reading import parse_yaml

if TYPE_CHECKING:
    from vitwarm.procedural import Rule


def rule_list() -> str:
    """The names of all rules, for a help text."""
    from vitwarm.procedural import list_rules

    return f"Rules: {', '.join(list_rules())}."


def read_rule(name: str, parameters: dict[str, str]) -> "Rule":
    """The rule of that name, or of a description such as `{"name": "shuffled", "rule": "dyck"}`.

    Raises:
        UserError: no such rule or parameter, or a value that it cannot have.
    """
    from vitwarm.procedural import make_rule

    spec = _value("rule", name) if name.startswith("{") else {"name": name}
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        raise UserError(f'a rule needs a name, such as {{"name": "dyck"}}, not {name}')
    if "name" in parameters:
        raise UserError("name= repeats rule=; leave name= out")
    try:
        return make_rule(**spec | {key: _value(key, text) for key, text in parameters.items()})
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


def _value(key: str, text: str) -> Any:
    """A value in YAML, which JSON is part of; `none` is null."""
    return None if text in ("none", "None") else parse_yaml(text, key)
