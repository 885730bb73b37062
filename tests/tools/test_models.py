"""The page of models against the models: a sample of every family here, all of them under `-m long`."""

import re

import models
import pytest
import timm

SAMPLE = [
    "vit_tiny_patch16_224", "vit_small_patch16_dinov3", "vit_base_patch16_sapiens2", "eva02_tiny_patch14_224",
    "naflexvit_base_patch16_gap", "beitv2_base_patch16_224", "vit_srelpos_small_patch16_224", "vitamin_small_224",
    "vit_tiny_r_s16_p8_224", "vit_small_resnet26d_224",
    "vit_dpwee_patch16_reg1_gap_256", "vit_small_patch16_18x2_224", "test_vit", "test_vit_relpos",
    "levit_128s", "crossvit_9_240", "convit_tiny", "repvit_m0_9", "qwen3_vit_88m_enc",
]  # fmt: skip
LINE = re.compile(r"^\| `(\w+)` \| (\d+) \| (yes|no) \| (yes|no) \| (yes|no) \| (.*) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def text():
    return models.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SAMPLE)
def test_the_page_says_what_the_model_says(name, text):
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    assert models.line(models.examine(name)) in text.splitlines()


def test_the_page_adds_up(text):
    """Sums of the lines, families and all."""
    rows = LINE.findall(text)
    names, _, own, free, core, why = zip(*rows, strict=True)
    can = [column.count("yes") for column in (own, free, core)]
    assert len(set(names)) == len(names) and f"| all | {len(rows)} | {can[0]} | {can[1]} | {can[2]} |" in text
    assert all(({"yes"} == {*answers}) == (reason == "") for *answers, reason in zip(own, free, core, why, strict=True))
    families = re.findall(r"^\| .* \| (\d+) of (\d+) \| (\d+) \| (\d+) \| .* \|$", text, re.MULTILINE)
    assert [sum(map(int, column)) for column in zip(*families, strict=True)] == [can[0], len(rows), can[1], can[2]]


def test_nine_of_ten_plain_vits_are_reached(text):
    total, *reached = map(int, re.search(r"plain ViTs \| (\d+) \| (\d+) \| (\d+) \| (\d+)", text).groups())
    assert len(reached) == 3 and all(some >= 0.9 * total for some in reached)


@pytest.mark.long
def test_the_whole_page_is_what_the_command_writes(text):
    written = re.search(r"with timm ([\w.]+)\.", text)[1]
    if written != timm.__version__:
        pytest.skip(f"the page was written with timm {written}")
    rows = [models.examine(name) for name in models.list_names()]
    assert models.page(rows) == text
