"""Amounts as recipes write them: `1%`, `3.84M`, `20M tokens`, `15000 steps`, `50 epochs`.

One class serves budgets (how much of a stage) and parts of a stage (how long its LR warm-up or cooldown is).
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from vitwarm.errors import UserError

GRAMMAR = "a share '1%', or a number (k, M, B) and a unit: '3.84M' (samples), '20M tokens', '15000 steps', '50 epochs'"

MOST_STEPS = 2**40  # of one stage: more is a slip, and would run forever

# Exponents are held to two digits: a recipe must not make us compute 10**999999999.
_AMOUNT = re.compile(
    r"((?:[0-9]{1,3}(?:,[0-9]{3}){1,8}|[0-9]{1,25})(?:\.[0-9]{0,24})?(?:[eE][+-]?[0-9]{1,2})?)\s*([kKMB]?)\s*(%|[a-z]*)"
)
_SUFFIX = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}
_UNITS = ("samples", "tokens", "steps", "epochs")
_MISSING = {
    "samples": "samples need a global batch",
    "tokens": "tokens need a sequence length and a global batch",
    "epochs": "epochs need data that ends; write samples or steps",
    "%": "a share needs a main stage to be a share of; write samples or steps",
}


@dataclass(frozen=True)
class Amount:
    """An exact number of samples, tokens, steps or epochs, or a share of a whole in percent."""

    value: Fraction
    unit: str  # samples, tokens, steps, epochs or %
    text: str  # as it was written, for messages
    key: str = ""  # the recipe key that it was written under, for messages

    @classmethod
    def parse(cls, text: str | float, key: str = "") -> "Amount":
        """Read an amount; a bare number counts samples.

        Args:
            text: The amount as the recipe writes it.
            key: The recipe key it stands under, which starts every error message.

        Raises:
            UserError: It is malformed, negative, or a share above 100 %.
        """
        text = str(text).strip()
        match = _AMOUNT.fullmatch(text)
        if match is None:
            trouble = "an amount cannot be negative" if text.startswith("-") else f"write {GRAMMAR}"
            if re.match(r"[0-9]+[,_]", text):
                trouble = "decimals stand behind a point, and commas only before each three digits, as in 15,000"
            raise UserError(f"{_prefix(key)}cannot use {text!r}: {trouble}")
        number, suffix, unit = match.groups()
        unit = unit or "samples"
        if unit != "%" and not unit.endswith("s"):
            unit += "s"
        if unit not in (*_UNITS, "%") or (unit == "%" and suffix):
            raise UserError(f"{_prefix(key)}cannot use {text!r}: write {GRAMMAR}")
        value = Fraction(number.replace(",", "")) * _SUFFIX[suffix]
        if unit == "%" and value > 100:
            raise UserError(f"{_prefix(key)}cannot use {text!r}: a share goes up to 100%")
        return cls(value, unit, text, key)

    def steps(
        self,
        *,
        global_batch: int | None = None,
        samples_of_whole: int | float | None = None,
        steps_of_whole: int | None = None,
        tokens_per_sample: int | None = None,
        samples_per_epoch: int | None = None,
    ) -> int:
        """Convert to whole optimiser steps: the nearest number, and at least one unless the amount is zero.

        Args:
            global_batch: Samples a step.
            samples_of_whole: What 100 % is, in samples (a warm-up budget: the main stage's presentations).
            steps_of_whole: What 100 % is, in steps (an LR warm-up or a cooldown: its stage). Give one of the two.
            tokens_per_sample: Sequence length.
            samples_per_epoch: Size of the training set.

        Raises:
            UserError: The unit needs a reference that is not there, such as epochs of an endless stream.
        """
        if self.value == 0:
            return 0
        if self.unit == "steps":
            return self._whole(self.value)
        if self.unit == "%" and steps_of_whole is not None:
            return self._whole(self.value / 100 * steps_of_whole)
        reference = {
            "samples": 1,
            "tokens": tokens_per_sample and Fraction(1, tokens_per_sample),
            "epochs": samples_per_epoch,
            "%": samples_of_whole and Fraction(samples_of_whole) / 100,
        }[self.unit]
        if not reference or not global_batch:
            raise UserError(f"{_prefix(self.key)}cannot use {self.text!r} here: {_MISSING[self.unit]}")
        return self._whole(self.value * reference / global_batch)

    def _whole(self, steps: Fraction) -> int:
        whole = max(1, math.floor(steps + Fraction(1, 2)))
        if whole > MOST_STEPS:
            raise UserError(f"{_prefix(self.key)}{self.text!r} is more than {MOST_STEPS:,} steps")
        return whole


def _prefix(key: str) -> str:
    return f"{key}: " if key else ""
