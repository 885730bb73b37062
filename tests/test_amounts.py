"""Amounts: what people write becomes steps, by exact arithmetic, or one line that says how to write it."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitwarm.amounts import Amount
from vitwarm.errors import UserError


@pytest.mark.parametrize(
    "text, value, unit",
    [
        ("1%", 1, "%"),
        ("0.5 %", Fraction(1, 2), "%"),
        ("100%", 100, "%"),
        ("3.84M", 3_840_000, "samples"),
        ("3840000", 3_840_000, "samples"),
        (3_840_000, 3_840_000, "samples"),
        ("3,840,000", 3_840_000, "samples"),
        ("1e6 samples", 1_000_000, "samples"),
        ("1 sample", 1, "samples"),
        ("20M tokens", 20_000_000, "tokens"),
        ("1.5B tokens", 1_500_000_000, "tokens"),
        ("15000 steps", 15_000, "steps"),
        ("15k steps", 15_000, "steps"),
        ("50 epochs", 50, "epochs"),
        (" 0.5 epoch ", Fraction(1, 2), "epochs"),
        ("0", 0, "samples"),
    ],
)
def test_reads_what_people_write(text, value, unit):
    amount = Amount.parse(text)
    assert (amount.value, amount.unit) == (value, unit)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "%",
        "M",
        "abc",
        "nan",
        "inf",
        "1e999999999",
        "101%",
        "100.0001%",
        "-1%",
        "-3M",
        "+-1",
        "1M%",
        "3.84m",
        "5 s",
        "5 minutes",
        "1% steps",
        "1 2",
        "0x10",
        "1.2.3",
        "1/2",
        "None",
        "True",
        "M steps",
        "١٢",
        "1,5 steps",
        "5,0%",
        "1_0%",
        "12,34",
        "1,0000",
    ],
)
def test_refuses_the_rest_in_one_line(text):
    with pytest.raises(UserError, match=r"^warmup\.budget: ") as error:
        Amount.parse(text, "warmup.budget")
    assert "\n" not in str(error.value)


def test_the_papers_budget_is_one_percent_of_its_images():
    images = {"global_batch": 256, "samples_of_whole": 300 * 1_281_167}
    assert Amount.parse("15000 steps").steps() == 15_000
    assert Amount.parse("3.84M").steps(global_batch=256) == 15_000
    assert Amount.parse("752.64M tokens").steps(global_batch=256, tokens_per_sample=196) == 15_000
    assert Amount.parse("1%").steps(**images) == round(0.01 * 300 * 1_281_167 / 256) == 15_014


@given(st.decimals(0, 10**9, places=3, allow_nan=False), st.integers(1, 8192), st.integers(1, 2048))
def test_steps_are_the_nearest_whole_number_and_never_none_of_something(number, batch, length):
    tokens = Amount.parse(f"{number} tokens").steps(global_batch=batch, tokens_per_sample=length)
    exact = Fraction(Decimal(number)) / batch / length
    if number == 0:
        assert tokens == 0
    elif exact >= Fraction(1, 2):
        assert abs(tokens - exact) <= Fraction(1, 2)
    else:
        assert tokens == 1


def test_a_share_is_of_the_stage_or_of_the_main_stages_samples():
    five = Amount.parse("5%")
    assert five.steps(steps_of_whole=1000) == 50
    assert five.steps(samples_of_whole=64_000, global_batch=64) == 50
    assert Amount.parse("50 epochs").steps(samples_per_epoch=1_281_167, global_batch=4096) == round(50 * 1281167 / 4096)


@pytest.mark.parametrize(
    "text, known, says",
    [
        ("1%", {"global_batch": 8}, "main stage"),
        ("2 epochs", {"global_batch": 8, "tokens_per_sample": 4, "samples_of_whole": 100}, "data that ends"),
        ("20M tokens", {"global_batch": 8}, "sequence length"),
        ("20M", {}, "global batch"),
    ],
)
def test_a_missing_reference_is_named(text, known, says):
    with pytest.raises(UserError, match=says) as error:
        Amount.parse(text, "warmup.budget").steps(**known)
    assert str(error.value).startswith("warmup.budget: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["1e99B steps", "2e12 steps", "1e30 epochs", "9e20"])
def test_more_steps_than_anyone_waits_for(text):
    with pytest.raises(UserError, match="more than .* steps"):
        Amount.parse(text, "warmup.budget").steps(global_batch=8, samples_per_epoch=1000)


def test_nothing_needs_no_reference():
    for text in ("0", "0%", "0 epochs", "0 tokens", "0 steps"):
        assert Amount.parse(text).steps() == 0
