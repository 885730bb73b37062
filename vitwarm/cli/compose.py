"""`vitwarm compose`."""

from dataclasses import dataclass
from pathlib import Path

from vitwarm.cli.words import option, rest
from vitwarm.errors import UserError


def _groups() -> str:
    from vitwarm.selection import GROUPS

    narrowed = "layers=last:4 and heads=0:1 narrow them down, as in 'mlp layers=0-3'=RUN."
    return f"Groups: {', '.join(GROUPS)}; {narrowed}"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Build a trunk from several sources, such as the attention of A and the MLPs of B.

    Tensors that no source gives are the target's. vitwarm.json in `out` holds the files with their SHA-256 and the
    origin of every tensor.
    """

    target: str = option("RUN, RUN/export, a GPT-2 folder of transformers, or timm:NAME", form="RUN")
    out: Path = option("a timm folder to make (or one of GPT-2)", form="FOLDER")
    fresh: bool = option("the target's architecture with new weights, not its own", False)
    seed: int = option("seed of the new weights and of the controls", 0, within="[0, inf)")
    controls: dict[str, str] = rest(
        "control.GROUPS=CONTROL",
        "shuffle, gaussian, noise:0.1 or scale:0.5, applied to the sources first",
        prefix="control.",
        last=True,
    )
    sources: dict[str, str] = rest(
        "GROUPS=SOURCE",
        "groups of a run, an export or a .safetensors file",
        required=True,
        last=True,
        explain=_groups,
    )


def run(options: Options) -> None:
    """Compose; prints where each tensor comes from."""
    if options.out.resolve().exists():
        raise UserError(f"{options.out} exists; choose another out")
    from vitwarm.exports import write_model
    from vitwarm.exports.opening import class_names_beside, open_model
    from vitwarm.transfer.compose import compose, head_of, record_of

    opened = open_model(options.target, fresh=options.fresh, seed=options.seed)
    report = compose(opened.model, options.sources, options.controls, seed=options.seed)
    facts = {"fresh": options.fresh, "seed": options.seed}
    if (runs := opened.config.warmup.middle_runs) > 1:
        facts["middle_runs"] = runs
    record = record_of(options.sources, report, options.target, opened.weights, options.controls, **facts)
    head = head_of(record) or opened.weights
    classes = class_names_beside(head, getattr(opened.model, "num_classes", 0)) if head else None
    write_model(opened.model, options.out, opened.config, opened.tokenizer, record, classes, opened.crop_mode)
    print(f"{report}\nwritten: {options.out}")
