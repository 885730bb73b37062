"""`vitwarm make-shards`."""

from dataclasses import dataclass, fields
from pathlib import Path

from vitwarm.cli.words import option


@dataclass(frozen=True, kw_only=True)
class Options:
    """Make shards of images: tars, their offset indices and a manifest.

    From ImageNet's archives, class folders, zips, parquet files, lists, torchvision's sets, other tars; of tars without
    out=, index and manifest only. See docs/shards.md.
    """

    source: Path = option("images to read: archives, folders, a zip, parquet, a list, tars")
    out: Path | None = option("folder to make; of tars optional", None, form="FOLDER")
    workers: int | None = option("processes; one for each CPU if not given", None, within="[0, inf)")
    kind: str | None = option("kind of the source; detected if not given", None, form="KIND")
    labels: Path | None = option("labels of validation images without class folders", None, form="FILE")
    classes: Path | None = option("class names by number: a list, or another set's manifest.json", None, form="FILE")
    split: str | None = option("name of the one split that a tree of class folders is; train if not given", None)
    seed: int = option("seed of the order of `train`", 0, within="[0, inf)")
    shuffle: bool = option("put `train` in a random order", True)
    images_per_shard: int | None = option("most images in a tar; by shard_mb if not given", None, within="[1, inf)")
    shard_mb: float = option("megabytes of images in a tar", 256.0, within="(0, inf)")
    max_damaged: float = option("largest share of images left out as damaged", 0.001, within="[0, 1)")
    max_side: int | None = option("most pixels of the shorter side; larger images shrink", None, within="[1, inf)")
    quality: int | None = option("JPEG quality of images made smaller; 90 if not given", None, within="[1, 100]")


def run(options: Options) -> None:
    """Make them; prints what each split holds."""
    from vitwarm.data.making import Options as Cut
    from vitwarm.data.making import make_shards
    from vitwarm.data.opening import counted
    from vitwarm.parallel import cores

    cut = Cut(**{one.name: getattr(options, one.name) for one in fields(Cut)})
    workers = cores() if options.workers is None else options.workers
    made = make_shards(
        options.source, options.out, options.kind, options.labels, options.split, workers, cut, classes=options.classes
    )
    for name, split in made.splits.items():
        odd = "".join(f", {count} {note}" for note, count in split.notes.items())
        read = f"{counted(split.samples, 'image')} in {counted(len(split.shards), 'tar')}"
        print(f"{name:6} {read}, {split.bytes / 1e6:,.1f} MB{odd}")
