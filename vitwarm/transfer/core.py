"""The compact core inside the package: three warmed blocks that become the trunk of any ViT (see `resize`)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vitwarm.errors import UserError
from vitwarm.exports.layout import PROVENANCE, WEIGHTS
from vitwarm.exports.weights import read_weights
from vitwarm.files import sha256_of, whole_folder
from vitwarm.reading import read_json
from vitwarm.transfer.groups import block_of, canonical, group_of
from vitwarm.transfer.perturb import perturb

CORE = Path(__file__).with_name("core_vit")
MAX_BYTES = 3_000_000


def pack_core(
    export: str | Path, folder: str | Path = CORE, controls: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Write the trunk of a core's export in half precision, with where it comes from and its SHA-256.

    Args:
        export: RUN/export of a recipe such as `core_vit`.
        folder: where to; the one inside the package by default.
        controls: selection -> control, applied first; see `perturb`. The package's core is halved:
            `{"attention": "scale:0.5", "mlp": "scale:0.5"}`, which the record says.

    Returns:
        What stands in the folder's vitwarm.json.

    Raises:
        UserError: no core there, or one above 3 MB.
    """
    source = Path(export)
    if not (source / WEIGHTS).is_file() or not (source / PROVENANCE).is_file():
        raise UserError(f"{export} is no export with {WEIGHTS} and {PROVENANCE}; give RUN/export")
    record, tensors = read_json(source / PROVENANCE, trunk=dict), read_weights(source / WEIGHTS)
    names = canonical(tensors)
    trained = {names[n]: t for n, t in tensors.items() if group_of(names[n]) not in ("embedding", "head")}
    if {block_of(n) for n in trained} - {None} != {0, 1, 2}:
        raise UserError(f"{export} holds no core: it must have three blocks; see the recipe core_vit")
    changed = perturb(trained, controls or {}, depth=3, heads=record["trunk"].get("heads"), seed=0)
    trunk = {n: t.half().contiguous() for n, t in changed.items()}
    size = sum(t.nbytes for t in trunk.values())
    if size > MAX_BYTES:
        raise UserError(
            f"the core has {size / 1e6:.1f} MB in half precision, more than {MAX_BYTES / 1e6:g}; take a narrower one"
        )
    with whole_folder(Path(folder)) as aside:
        save_file(trunk, aside / WEIGHTS, metadata={"format": "pt"})
        made = {"sha256": sha256_of(aside / WEIGHTS), "dtype": str(torch.float16)}
        record |= made | ({"controls": dict(controls)} if controls else {})
        (aside / PROVENANCE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record
