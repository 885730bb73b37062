"""python tools/models.py: which models of timm can be warmed up; writes docs/models.md.

Each model is built on the device `meta`, with three blocks where timm lets that be said, so nothing is computed.
"""

import json
import warnings
from collections import defaultdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.layers import HybridEmbed
from torch import nn

from vitwarm.errors import UserError
from vitwarm.exports.layout import PROVENANCE
from vitwarm.transfer import read_source, resize
from vitwarm.transfer.core import CORE
from vitwarm.transfer.warm_start import FREE, PACKAGED
from vitwarm.trunk import Trunk
from vitwarm.trunk.families import adapter_of, family_of
from vitwarm.trunk.initialisations import attentions
from vitwarm.trunk.initialisations.registry import registered

PAGE = Path(__file__).parents[1] / "docs/models.md"
PATTERNS = ("*vit*", "*deit*", "*eva*", "*beit*", "*siglip*", "*dinov3*", "aimv2*")


class Row(NamedTuple):
    """What is known of a model.

    Attributes:
        name, kind, width: timm's name, class, and channels of its tokens, of the widest.
        label: what people call the family; its class, where none of its models can be warmed up.
        own: why it cannot be warmed up; None where it can.
        free: why closed forms do not cover its attention; None where they do.
        core: why the core does not fit it; None where it does.
        plain: whether it is a uniform sequence of blocks on one grid of tokens.
    """

    name: str
    kind: str
    width: int
    label: str
    own: str | None
    free: str | None
    core: str | None
    plain: bool


def list_names() -> list[str]:
    """The names that the page is about."""
    return [name for name in timm.list_models() if any(fnmatch(name, pattern) for pattern in PATTERNS)]


def width_of(model: nn.Module) -> int:
    """Channels of a model's tokens, of the widest where there are several kinds."""
    widths = [getattr(model, name, 1) for name in ("embed_dim", "num_features")]
    return max(1, *(n for width in widths for n in (width if isinstance(width, (list, tuple)) else [width])))


def examine(name: str) -> Row:
    """Build one model on `meta` and ask."""
    with torch.device("meta"):
        try:
            model = timm.create_model(name, depth=3)
        except (TypeError, AssertionError):  # its depth is no argument, or belongs to others
            model = timm.create_model(name)
    family, free, core = adapter_of(model), None, None
    own = family.refusal
    if own is None:
        with torch.no_grad():
            Trunk(model)(torch.empty(1, 4, model.embed_dim, device="meta"), is_causal=True)
        try:
            attentions(family_of(model), _FREE)
        except ValueError as error:
            free = str(error)
        try:
            resize(_core(), model, "expand", heads=_HEADS, seed=0)
        except UserError as error:
            core = str(error)
    label = type(model).__name__ if own else ", ".join(family.examples)
    if isinstance(getattr(model, "patch_embed", None), HybridEmbed) and own:
        label = f"hybrid {label}"
    return Row(
        name,
        type(model).__name__,
        width_of(model),
        label,
        own,
        free or own,
        core or own,
        own is None or _is_plain(model),
    )


_FREE = registered()[FREE]
_HEADS = json.loads((CORE / PROVENANCE).read_text(encoding="utf-8"))["trunk"]["heads"]
_CORE: dict[str, torch.Tensor] = {}


def _core() -> dict[str, torch.Tensor]:
    if not _CORE:
        _CORE.update({n: t.to("meta") for n, t in read_source(PACKAGED)[0].items()})
    return _CORE


def _is_plain(model: Any) -> bool:
    """Whether a model that cannot be warmed up is a uniform sequence of blocks on one grid all the same."""
    model = getattr(model, "encoder", model)
    blocks = getattr(model, "blocks", None)
    several = nn.ModuleList | HybridEmbed  # grids, or networks
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or isinstance(model.patch_embed, several):
        return False
    return len({str({n: tuple(t.shape) for n, t in block.state_dict().items()}) for block in blocks}) == 1


def line(row: Row) -> str:
    """The model's line of the page."""
    own, core, free = ("no" if why else "yes" for why in (row.own, row.core, row.free))
    return f"| `{row.name}` | {row.width} | {own} | {core} | {free} | {row.own or row.core or row.free or ''} |"


_PAGE = """\
# Models

Which models of timm can be warmed up. `python tools/models.py` writes this page; it was last run with timm {version}.

- **Own warm-up**: `vitwarm train` warms the model up itself. The blocks must be one sequence and take a mask.
- **Core**: `vitwarm.warm_start(model)` puts the [core inside the package](modular.md#a-compact-core) into it.
- **Conditioned**: its attention can be set in [closed form](trunk.md#initialisations-to-compare-with), which
  `vitwarm.warm_start(model)` does where the model is smaller than the core, and `vitwarm.initialise` anywhere.
- **Plain ViTs** are all models with one sequence of equal blocks on one grid of tokens. Hierarchical models, hybrids
  (a ResNet or the like in front of the blocks) and mixers of other kinds are refused with the reason, in a line that
  names the plain ViT nearest in parameters and image size.

The names are those that match {patterns}.

| models | names | own warm-up | core | conditioned |
|---|---:|---:|---:|---:|
{counts}

What a model has no counterpart for stays fresh when it receives the core, and the report names it: the values that a
gate multiplies (SwiGLU, GLU), layer scales, norms of queries and keys, norms within attention or the MLP, gates of
attention, the parameters of differential attention. The core's biases are left out where a model has none.
[A compact core](modular.md#a-compact-core) has the details.

## Families

| family | names | own warm-up | core | conditioned | why not |
|---|---|---:|---:|---:|---|
{families}

## All names

Width: channels of the tokens, of the widest in a hierarchical model.

| model of timm | width | own warm-up | core | conditioned | why not |
|---|---:|---|---|---|---|
{names}
"""


def page(rows: list[Row]) -> str:
    """The whole page."""
    families: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        families[row.label].append(row)
    ordered = sorted(families.items(), key=lambda item: (item[1][0].own is not None, -len(item[1]), item[0]))
    counts = [
        f"| {title} | {len(some)} | {sum(not r.own for r in some)} | {sum(not r.core for r in some)} | "
        f"{sum(not r.free for r in some)} |"
        for title, some in (("all", rows), ("plain ViTs", [row for row in rows if row.plain]))
    ]
    return _PAGE.format(
        version=timm.__version__,
        patterns=", ".join(f"`{p}`" for p in PATTERNS),
        counts="\n".join(counts),
        families="\n".join(_family(label, own) for label, own in ordered),
        names="\n".join(line(row) for _, own in ordered for row in own),
    )


def _family(label: str, rows: list[Row]) -> str:
    starts = dict.fromkeys(row.name.split("_")[0] + "_*" for row in rows)
    why = dict.fromkeys(reason.split(": ")[0] for row in rows if (reason := row.own or row.core or row.free))
    columns = [r.own for r in rows], [r.core for r in rows], [r.free for r in rows]
    own, core, free = (sum(not reason for reason in column) for column in columns)
    names = ", ".join(f"`{s}`" for s in starts)
    return f"| {label} | {names} | {own} of {len(rows)} | {core} | {free} | {'; '.join(why)} |"


def main() -> None:
    """Examine all names; write the page."""
    rows = [examine(name) for name in list_names()]
    PAGE.write_text(page(rows), encoding="utf-8")
    print(f"{PAGE}: {len(rows)} names")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # timm's, of names that it renamed
    main()
