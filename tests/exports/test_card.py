"""Model cards: metadata that the Hub's own parser takes, and sentences that are true of the weights."""

import re

import pytest
from huggingface_hub import ModelCard

from vitwarm.exports.card import dataset_name, model_card, of_the_hub

FACTS = {"recipe": "a_recipe", "description": "On `x: y`, # and 'quotes'.", "recipe_hash": "0123456789ab", "seed": 3}
WARMED = {"start": "warm-up of 5 steps on dyck", "warmed_keys": ["blocks.0.attn.qkv.weight"], "fresh_keys": ["head"]}
TRAINED = {"trained": "images", "dataset": "digits", "metrics": {"top1": 0.5, "loss": 1.25, "count": 10}}


def parsed(*args):
    text = model_card(*args)
    card = ModelCard(text)  # refuses metadata that the Hub would refuse
    return card.data, card.text


def test_of_a_trained_model():
    data, body = parsed("vit_tiny_patch16_224", FACTS | WARMED | TRAINED)
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "timm", "image-classification")
    assert {"timm", "vitwarm", "image-classification"} <= set(data.tags) and data.base_model is None
    (result,) = data.eval_results  # of what is a measure of the Hub's: a loss and a count are none
    found = (result.task_type, result.dataset_name, result.dataset_type, result.metric_type, result.metric_value)
    assert found == ("image-classification", "digits", "digits", "accuracy", 0.5)
    for piece in ("A timm `vit_tiny_patch16_224`, trained on images (digits).", "| recipe | `a_recipe` |",
                  "| what the recipe is for | On `x: y`, # and 'quotes'. |",
                  "| recipe hash | `0123456789ab` |", "| seed | 3 |", "| top1 | 0.5000 |",
                  "| start | warm-up of 5 steps on dyck |", "local-dir:PATH_TO_THIS_FOLDER"):  # fmt: skip
        assert piece in body, piece
    assert "fresh" not in body and "count" not in body and "smoke" not in body
    assert "trained on images (digits); by a smoke run" in parsed("x", TRAINED | {"smoke": True})[1]
    entries = re.findall(r"```bibtex\n@article\{\w+,\n(?:  .*\n)+\}\n```", body)
    assert len(entries) == 1 and entries[0].count("{") == entries[0].count("}") and "2511.13945" in entries[0]


def test_of_a_warm_up_alone():
    """It measures symbols, which is no measure of an image model, and its head is not in the folder."""
    data, body = parsed("vit_tiny_patch16_224", FACTS | WARMED | {"trained": "warmup", "metrics": {"accuracy": 0.75}})
    assert data.eval_results is None and data.pipeline_tag is None and "image-classification" not in data.tags
    assert "trained on images" not in body
    assert "trained on procedural data and nothing else, the trunk alone; the rest of it is fresh." in body
    assert "| accuracy on the rule's sequences | 0.7500 |" in body


def test_of_a_composition_and_of_a_model_of_somebodys_own():
    record = {"start": "composed: attention of a/model.safetensors", "trained": None, "license": "unknown"}
    data, body = parsed("vit_tiny_patch16_224", record)
    assert "`, composed: attention of a/model.safetensors; not trained since." in body and "fresh" not in body
    assert data.license == "unknown" and data.eval_results is None
    _, body = parsed("vit_tiny_patch16_224", {"start": "warm-up of 5 steps on dyck", "trained": "elsewhere"})
    assert (
        "warm-up of 5 steps on dyck; what was done to its weights elsewhere, if anything, is not recorded here." in body
    )


def test_of_one_that_began_with_weights_of_others():
    bases = {"base_models": ["timm/vit_small_patch16_dinov3.lvd1689m"], "license": "dinov3-license"}
    data, _ = parsed("vit_small_patch16_dinov3", FACTS | WARMED | TRAINED | bases)
    assert data.base_model == ["timm/vit_small_patch16_dinov3.lvd1689m"]
    assert (data.license, data.license_name) == ("other", "dinov3-license")


@pytest.mark.parametrize(
    ("architecture", "task", "metrics", "kinds"),
    [
        ("GPT2LMHeadModel", "text-generation", {"loss": 2.0, "perplexity": 7.4}, ["perplexity"]),
        (
            "GPT2ForSequenceClassification",
            "text-classification",
            {"accuracy": 0.9, "f1": 0.8, "matthews": 0.7},
            ["accuracy", "f1", "matthews_correlation"],
        ),
    ],
)
def test_of_decoders(architecture, task, metrics, kinds):
    record = FACTS | WARMED | {"trained": "text", "dataset": "cola", "metrics": metrics}
    data, body = parsed("GPT-2 2_3_48", record, architecture)
    assert (data.library_name, data.pipeline_tag) == ("transformers", task)
    assert [result.metric_type for result in data.eval_results] == kinds
    assert f'model = transformers.{architecture}.from_pretrained("PATH_TO_THIS_FOLDER")' in body
    assert "trained on text (cola)" in body and "2601.21725" in body and "timm" not in data.tags


def test_on_the_hub_it_loads_from_there():
    for architecture, line in ((None, '"hf-hub:me/vit"'), ("GPT2LMHeadModel", 'from_pretrained("me/vit")')):
        card = of_the_hub(model_card("x", FACTS | WARMED, architecture), "me/vit")
        assert line in card and "PATH_TO" not in card


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("digits", "digits"),
        ("/home/somebody/data/imagenet/val", "imagenet val"),
        ("/data/cifar10/val-{000..003}.tar", "data cifar10"),
        ("hf://datasets/timm/imagenet-1k-wds/imagenet1k-validation-{00..63}.tar", "timm/imagenet-1k-wds"),
        ("texts/*.jsonl", "texts"),
        ("*.tar", "*.tar"),
    ],
)
def test_data_are_called_by_their_last_folders(place, name):
    assert dataset_name(place) == name
