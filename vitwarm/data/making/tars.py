"""Existing WebDataset tars: indices and a manifest beside them, or a check against the manifest that they have."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from vitwarm.data import manifest as manifests
from vitwarm.data.making.write import describe
from vitwarm.data.manifest import MOST_CLASSES, ShardManifest, SplitManifest
from vitwarm.data.shards import expand
from vitwarm.data.splits import split_of
from vitwarm.errors import UserError
from vitwarm.files import write_text
from vitwarm.parallel import progress_bar, run_in_pool


def describe_tars(folder: Path, workers: int, say: Callable[[str], None]) -> ShardManifest:
    """Index every tar of a folder and write manifest.json; where there is one, check the tars against it instead.

    The split of a tar follows from the words of its name; without one it is `train`.

    Raises:
        UserError: a tar is damaged, or does not match the manifest.
    """
    place = folder / manifests.NAME
    known = manifests.beside(folder)
    tars = expand(folder)
    if known is not None and (lost := sorted(set(known.shards()) - {tar.name for tar in tars})):
        raise UserError(
            f"{folder / lost[0]}: is missing ({len(lost)} of {len(known.shards())} tars of its manifest are)"
        )
    found, labels = {}, {}
    with progress_bar(sum(tar.stat().st_size for tar in tars), "verify" if known else "index", "B") as bar:
        for i, (shard, counts) in run_in_pool(describe, tars, workers):
            if known is not None and shard != known.shards().get(shard.name):
                raise UserError(
                    f"{tars[i]}: is not the tar that {place} describes; copy it again, or remove the manifest"
                )
            found[i], labels[i] = shard, counts
            bar.update(shard.bytes)
    if known is not None:
        say(f"{folder}: all {len(tars)} tars match the manifest")
        return known
    num_classes = 1 + max(max(counts) for counts in labels.values())
    if num_classes > MOST_CLASSES:
        where = next(tars[i] for i, counts in labels.items() if max(counts) >= MOST_CLASSES)
        raise UserError(
            f"{where}: label {max(map(max, labels.values()))} is above {MOST_CLASSES - 1}, too large for a class number"
        )
    splits = {}
    for name in ("train", "val", "test"):
        rows = [i for i, tar in enumerate(tars) if (split_of(tar.name) or "train") == name]
        if rows:
            total = sum((Counter(labels[i]) for i in rows), Counter())
            shards = [found[i] for i in rows]
            splits[name] = SplitManifest(
                samples=sum(shard.samples for shard in shards),
                bytes=sum(shard.bytes for shard in shards),
                class_counts=[total[number] for number in range(num_classes)],
                shuffle_seed=None,
                shards=shards,
            )
    made = ShardManifest("tars", None, splits)
    try:
        write_text(place, made.dump())
    except OSError as error:
        raise UserError(f"{place}: cannot be written ({error.strerror})") from None
    return made
