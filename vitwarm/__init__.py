"""vitwarm: warm up transformers on procedural data. Attributes load on first use: importing the package is instant."""

from importlib import import_module

__version__ = "0.2.0.dev0"

_WHERE = {
    "train": "vitwarm.run",
    "warm_up": "vitwarm.warming",
    "export": "vitwarm.exports",
    "warm_start": "vitwarm.transfer",
    "initialise": "vitwarm.trunk",
    "RuleDataset": "vitwarm.data.rule_dataset",
    "make_rule": "vitwarm.procedural",
    "list_rules": "vitwarm.procedural",
}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'vitwarm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
