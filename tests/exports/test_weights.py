"""Files of weights as people have them: in several files, from within other modules, quantised, diverged."""

import json

import pytest
import torch
from safetensors.torch import save_file

from vitwarm.errors import UserError
from vitwarm.exports.weights import find_weights, read_weights, sha256_of_weights
from vitwarm.files import sha256_of

PLAIN = {f"{name}.weight": torch.arange(4.0) + i for i, name in enumerate(("blocks.0.norm1", "blocks.1.norm1", "norm"))}
GPT2 = {f"{name}.weight": torch.ones(2, 4) for name in ("transformer.h.0.ln_1", "transformer.wte", "lm_head")}
PREFIXES = [
    "",
    "module.",
    "_orig_mod.",
    "model.",
    "backbone.",
    "module._orig_mod.",
    "model.backbone.",
    "a.b.",
    "trunk.",
]


def saved(path, tensors):
    save_file({n: t.clone() for n, t in tensors.items()}, path)
    return path


def in_several(folder, **changes):
    """The plain tensors in two files with their index, as transformers writes them."""
    folder.mkdir()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    places = {name: names[i > 0] for i, name in enumerate(PLAIN)}
    for file in names:
        saved(folder / file, {n: PLAIN[n] for n, f in places.items() if f == file})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places} | changes), encoding="utf-8")
    return index


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(t, expected[n]) for n, t in found.items())


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("tensors", [PLAIN, GPT2])
def test_what_all_tensors_have_in_front_is_taken_off(tmp_path, prefix, tensors):
    others = {"step": torch.tensor(7), "classifier.weight": torch.ones(3, 4)} if prefix else {}
    same(read_weights(saved(tmp_path / "a.safetensors", {prefix + n: t for n, t in tensors.items()} | others)), tensors)


def test_blocks_within_the_stem_of_a_hybrid_are_no_second_model(tmp_path):
    hybrid = PLAIN | {"patch_embed.backbone.stages.0.blocks.0.conv1.weight": torch.ones(2)}
    same(read_weights(saved(tmp_path / "a.safetensors", {"module." + n: t for n, t in hybrid.items()})), hybrid)


def test_several_files_are_read_as_one(tmp_path):
    index = in_several(tmp_path / "a")
    same(read_weights(index), PLAIN)
    assert find_weights(tmp_path / "a") == index and find_weights(tmp_path) is None
    first = index.with_name("model-00001-of-00002.safetensors")
    with pytest.raises(UserError, match="is one of 2 files of weights; give the folder"):
        read_weights(first)
    before = sha256_of_weights(index)
    saved(first, {n: t + 1 for n, t in PLAIN.items() if n.startswith("blocks.0")})
    assert sha256_of_weights(index) != before != sha256_of(index)
    first.unlink()
    with pytest.raises(UserError, match="names model-00001-of-00002.safetensors, which is not there"):
        read_weights(index)


@pytest.mark.parametrize(
    "places",
    [
        None,
        [],
        {},
        {"norm.weight": "../other.safetensors"},
        {"norm.weight": "/etc/passwd"},
        {"norm.weight": "pytorch_model.bin"},
        {"norm.weight": ["model-00001-of-00002.safetensors"]},
        {"norm.weight": "model-00001-of-00002.safetensors"},  # which holds another
    ],
)
def test_an_index_that_names_other_things_is_refused(tmp_path, places):
    with pytest.raises(UserError, match="index of weights|weight_map is|has no tensor norm.weight, which"):
        read_weights(in_several(tmp_path / "a", weight_map=places))


def test_an_index_nested_without_end_is_refused(tmp_path):
    index = in_several(tmp_path / "a")
    index.write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(UserError, match="nested too deeply"):
        read_weights(index)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"blocks.0.a": torch.tensor([1.0, float("nan")])}, "blocks.0.a has values that are not finite"),
        ({"blocks.0.a": torch.tensor([float("inf")], dtype=torch.bfloat16)}, "not finite"),
        ({"blocks.0.a": torch.ones(2).to(torch.float8_e4m3fn)}, "dequantise"),
        (
            {"student.blocks.0.a": torch.ones(1), "teacher.blocks.0.a": torch.ones(1)},
            "teacher.blocks",
        ),
    ],
)
def test_weights_that_are_no_weights_are_refused(tmp_path, tensors, reason):
    with pytest.raises(UserError, match=reason) as caught:
        read_weights(saved(tmp_path / "a.safetensors", tensors))
    assert "\n" not in str(caught.value) and "a.safetensors" in str(caught.value)
