"""`vitwarm validate`."""

from dataclasses import dataclass

from vitwarm.cli.guard import say
from vitwarm.cli.words import option


@dataclass(frozen=True, kw_only=True)
class Options:
    """Exact top-1, top-5 and loss of an export, and images per second.

    On several GPUs: accelerate launch -m vitwarm validate export=RUN/export shards=SHARDS
    """

    export: str = option("export folder of a run, or any folder of a timm model", form="RUN/export")
    shards: str = option("validation images, as images.val (docs/shards.md), or `digits`", form="SHARDS")
    batch: int = option("images a device takes at once", 256, within="[1, inf)")
    workers: int | None = option("loader processes of a rank; by the CPUs if not given", None, within="[0, 256]")


def run(options: Options) -> None:
    """Evaluate; prints a line for each figure."""
    from vitwarm.validate import validate_export

    result = validate_export(options.export, options.shards, batch=options.batch, workers=options.workers)
    shown = (f"{value:.4f}" if isinstance(value, float) else str(value) for value in result.values())
    say("\n".join(f"{name:16} {value}" for name, value in zip(result, shown, strict=True)))
