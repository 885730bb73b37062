"""Rules that write symbol sequences, and the seekable streams drawn from them. NumPy only; needs no torch.

>>> from vitwarm.procedural import RuleStream, make_rule
>>> stream = RuleStream(make_rule("dyck", k=64), seed=0, split="train", length=196)
>>> batch = stream.masked_rows(0, 256, mask_prob=0.5)  # inputs, targets, masked: (256, 196) each
"""

from vitwarm.keys import keyed_rng
from vitwarm.procedural import brackets, composite, eca, shuffle, tasks, ww  # noqa: F401  (each registers its rules)
from vitwarm.procedural.registry import list_rules, make_rule, register, rule_class
from vitwarm.procedural.rule import Rule, Sequences, Vocab, parameter
from vitwarm.procedural.stream import CHUNK, SPLITS, MaskedRows, RuleStream, masked_batch

__all__ = [
    "CHUNK",
    "SPLITS",
    "MaskedRows",
    "Rule",
    "RuleStream",
    "Sequences",
    "Vocab",
    "keyed_rng",
    "list_rules",
    "make_rule",
    "masked_batch",
    "parameter",
    "register",
    "rule_class",
]
