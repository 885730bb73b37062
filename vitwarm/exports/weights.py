"""Weights from files: one .safetensors file or several, whatever module they were saved from, all values finite."""

import hashlib
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vitwarm.errors import UserError
from vitwarm.exports.layout import INDEX, PROVENANCE, WEIGHTS
from vitwarm.files import sha256_of
from vitwarm.reading import read_json

_BLOCK = re.compile(r"((?:[^.]+\.)*?)(?:transformer\.h|h|blocks)\.\d+\.")  # what stands before the first `blocks.N.`
_SHARD = re.compile(r".+-\d{5}-of-(\d{5})\.safetensors")
_MOST_RUNS = 1000  # as `warmup.middle_runs` allows
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def find_weights(folder: Path) -> Path | None:
    """The weights in a folder: a file, or the index of several; None without either."""
    return next((path for path in (folder / WEIGHTS, folder / INDEX) if path.is_file()), None)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Tensors by the names that the model has for them, on the CPU.

    Weights are often saved from within another module, such as `DistributedDataParallel`, `torch.compile` or a trainer
    of one's own. What all blocks have in front of `blocks.N.` (`module.`, `_orig_mod.`, `model.backbone.`, ...) is that
    module's: it is taken off, and tensors outside of it (another stem, another head) are left out.

    Args:
        file: a .safetensors file, or the `model.safetensors.index.json` of several.

    Raises:
        UserError: another kind of file, a damaged one, one of several, two models in one file, or values that are
            no numbers.
    """
    if file.name.endswith(INDEX):
        tensors = _several(file)
    elif file.suffix != ".safetensors":
        raise UserError(f"{file} is not a .safetensors file; convert it first (nothing else is read, for safety)")
    elif (several := _SHARD.fullmatch(file.name)) and int(several[1]) > 1:
        raise UserError(f"{file} is one of {int(several[1])} files of weights; give the folder, or its {INDEX}")
    else:
        tensors = _one(file)
    tensors = _unwrapped(tensors, file)
    require_finite(tensors, str(file))
    return tensors


def middle_runs_of(folder: Path) -> int:
    """How often the middle block ran when a folder's weights were trained, by the record beside them; 1 but of a core.

    Raises:
        UserError: a record that says something else than a number of times.
    """
    try:
        runs = read_json(folder / PROVENANCE).get("middle_runs", 1)
    except UserError:  # weights of others
        return 1
    if isinstance(runs, bool) or not isinstance(runs, int) or not 1 <= runs <= _MOST_RUNS:
        raise UserError(f"{folder / PROVENANCE}: middle_runs is {runs!r}, not a whole number from 1 to {_MOST_RUNS}")
    return runs


def sha256_of_weights(file: Path) -> str:
    """SHA-256 of a file of weights; of an index, that of the sorted names and digests of its files, one a line."""
    if not file.name.endswith(INDEX):
        return sha256_of(file)
    files = sorted(set(read_json(file, weight_map=dict)["weight_map"].values()))
    lines = "".join(f"{name} {sha256_of(file.with_name(name))}\n" for name in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _one(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read ({error}); it is damaged or not a safetensors file") from error


def _several(index: Path) -> dict[str, Tensor]:
    """The tensors that an index names; its files lie beside it."""
    places = read_json(index, weight_map=dict)["weight_map"]
    names = list(places.values())
    if not names or not all(type(n) is str and n == Path(n).name and n.endswith(".safetensors") for n in names):
        raise UserError(f"{index} is no index of weights: it names other things than .safetensors files beside it")
    files = sorted(set(names))
    if missing := [f for f in files if not index.with_name(f).is_file()]:
        raise UserError(f"{index} names {missing[0]}, which is not there; copy all of the {len(files)} files")
    tensors: dict[str, Tensor] = {}
    for file in files:
        held = _one(index.with_name(file))
        if wrong := [name for name, place in places.items() if place == file and name not in held]:
            raise UserError(f"{index.with_name(file)} has no tensor {wrong[0]}, which {index.name} places there")
        tensors |= {name: tensor for name, tensor in held.items() if places.get(name) == file}
    return tensors


def _unwrapped(tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    found = {block[1] for name in tensors if (block := _BLOCK.match(name))}
    outer = sorted(p for p in found if not any(p != other and p.startswith(other) for other in found))  # hybrids nest
    if len(outer) > 1:
        raise UserError(
            f"{file} has blocks under {len(outer)} names, {outer[0]}blocks and {outer[1]}blocks; "
            "write one model's tensors to a file of their own"
        )
    prefix = outer[0] if outer else ""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def require_finite(tensors: dict[str, Tensor], source: str) -> None:
    """Refuse weights with NaN or infinity among them, and those that are quantised.

    Raises:
        UserError: the first such tensor is named.
    """
    for name, tensor in tensors.items():
        if not tensor.dtype.is_floating_point:
            continue  # counters and indices; as a weight it is refused where it would be copied
        if tensor.dtype not in _DTYPES:
            raise UserError(f"{source}: {name} is {tensor.dtype}; dequantise the weights first, to float32 say")
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{source}: {name} has values that are not finite (NaN or infinity); these weights diverged"
            )
