"""Training images streamed from web servers and object stores, for sets that do not fit on a disk. See docs/shards.md.

A stream guarantees less than shards on a disk. Its batches are a pure function of (seed, step, processes, workers,
device batch, the tars) and not of (seed, step) alone, since each process reads tars of its own from front to end.
"""

import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import braceexpand
import torch
from torch.utils.data import IterableDataset, get_worker_info

from vitwarm.data import manifest as manifests
from vitwarm.data.images import TrainTransform
from vitwarm.data.loading import Loader
from vitwarm.data.order import ImageOrder, rank_slice
from vitwarm.data.shards import DamagedSample
from vitwarm.data.tar_index import IMAGE_EXTENSIONS
from vitwarm.data.web import file_name, one_line, open_url, shown
from vitwarm.errors import UserError, without_secrets
from vitwarm.keys import keyed_rng

_BUFFER = 512  # encoded images that a worker shuffles among, on top of the order of the tars


def is_url(spec: str) -> bool:
    """Whether a specification of shards is one of streamed shards."""
    return "://" in spec


@dataclass(frozen=True)
class Stream:
    """Tars to stream.

    Attributes:
        urls: URLs of the tars, in the order of the specification.
        samples: images in all of them.
        counts: images in each, from the manifest beside them; None without one.
        num_classes: labels must be below it.
    """

    urls: list[str]
    samples: int
    counts: list[int] | None
    num_classes: int

    def __len__(self) -> int:
        return self.samples

    @property
    def identity(self) -> str:
        """Which images these are: how many, and a digest of their addresses and of what the manifest says of each."""
        told = json.dumps([*map(without_secrets, self.urls), self.counts])
        return f"{len(self):,} images, {hashlib.sha256(told.encode()).hexdigest()[:16]}"


def open_stream(spec: str, samples: int | None, num_classes: int) -> Stream:
    """The tars of a URL with braces, such as `https://host/train-{00000..00539}.tar` or `s3://bucket/...`.

    Args:
        spec: `https`, `http`, or any scheme that an installed fsspec file system knows; never a command.
        samples: `images.train_samples`; None takes the number from manifest.json beside the tars.
        num_classes: number of classes of the classifier.

    Raises:
        UserError: a scheme that is not known, no manifest and no `samples`, or the two disagree.
    """
    try:
        urls = list(braceexpand.braceexpand(spec))
    except braceexpand.UnbalancedBracesError:
        raise UserError(f"{spec}: the braces of this pattern do not balance") from None
    for url in urls:
        if re.match(r"[a-z0-9]+://", url) is None or url.startswith(("file:", "local:")) or "::" in url:
            raise UserError(
                f"{shown(url)}: is not a URL to stream from; use https://, s3://, ..., or a path for local tars"
            )
        if "*" in url:
            raise UserError(f"{shown(url)}: a stream cannot list its tars; write braces, train-{{00000..00539}}.tar")
    if len(set(urls)) < len(urls):
        raise UserError(f"{spec}: names a tar twice")
    counts = None
    try:
        place = f"{re.split('[?#]', urls[0])[0].rpartition('/')[0]}/{manifests.NAME}"
        with open_url(place) as file:
            known = manifests.load(file.read(), shown(place)).shards()
        names = [file_name(url) for url in urls]
        if lost := [name for name in names if name not in known]:
            raise UserError(f"{shown(place)}: does not list {lost[0]}; make it again, or fix images.train")
        counts = [known[name].samples for name in names]
    except OSError as error:
        if samples is None:
            message = f"{shown(place)}: cannot be read ({one_line(error)}); put it there or set images.train_samples"
            raise UserError(message) from None
    if counts is not None and samples not in (None, sum(counts)):
        raise UserError(f"images.train_samples={samples}, but {shown(place)} counts {sum(counts)}; leave it out")
    total = sum(counts) if counts is not None else samples
    assert total is not None  # without a manifest `samples` is demanded above
    return Stream(urls, total, counts, num_classes)


def stream_loader(
    stream: Stream,
    transform: TrainTransform,
    order: ImageOrder,
    start_step: int,
    stop_step: int,
    rank: int = 0,
    world: int = 1,
    device_batch: int | None = None,
    workers: int = 0,
    pin_memory: bool | None = None,
) -> Loader:
    """Micro-batches of one process for the steps [start_step, stop_step): those of `train_loader`, from a stream.

    Every process and worker reads tars of its own, dealt out for each pass by an order keyed by (seed, pass); one that
    has read its tars begins its next pass, so that no process waits for another. Augmentation is keyed by (seed, pass,
    tar, place in the tar). To start later, the pass in question is read again without decoding.

    Raises:
        UserError: fewer tars than processes; while iterating: a tar cannot be read or is not a set of labelled images.
    """
    share = rank_slice(order.global_batch, rank, world)
    size = device_batch or share.stop - share.start
    if len(stream.urls) < world:
        raise UserError(
            f"{len(stream.urls)} streamed tars are too few for {world} processes; each needs one of its own"
        )
    lanes = max(1, min(workers, len(stream.urls) // world))
    a_step = (share.stop - share.start) // size
    numbers = range(start_step * a_step, stop_step * a_step)
    dataset = _StreamDataset(stream, transform, order.seed, rank, world, size, numbers, lanes)
    return Loader(dataset, None, lanes if workers else 0, pin_memory)


class _StreamDataset(IterableDataset):
    """Micro-batch i comes from lane i % lanes; a worker serves one lane."""

    def __init__(
        self,
        stream: Stream,
        transform: TrainTransform,
        seed: int,
        rank: int,
        world: int,
        size: int,
        numbers: range,
        lanes: int,
    ):
        self.stream, self.transform, self.seed, self.rank, self.world = stream, transform, seed, rank, world
        self.size, self.numbers, self.lanes = size, numbers, lanes

    def __iter__(self) -> Iterator[list[dict[str, Any]] | UserError]:
        worker = get_worker_info()
        first = self.numbers.start + (worker.id if worker else 0)  # the loader asks its workers in turn, from worker 0
        lane = first % self.lanes
        try:
            records = self._records(lane, first // self.lanes * self.size)
            for _ in range(first, self.numbers.stop, self.lanes):
                yield [self._sample(*record) for record in itertools.islice(records, self.size)]
        except UserError as error:  # returned, since torch would put its traceback into the message
            yield error

    def _records(self, lane: int, skip: int) -> Iterator[tuple[int, int, int, dict[str, Any]]]:
        """(pass, tar, place, webdataset's sample) of a lane without end, but for the first `skip`."""
        import webdataset

        stream = self.stream
        for number in itertools.count():
            order = keyed_rng(self.seed, "images", "stream", "tars", number).permutation(len(stream.urls))
            tars = order[self.rank :: self.world][lane :: self.lanes].tolist()
            if stream.counts is not None and 0 < (there := sum(stream.counts[tar] for tar in tars)) <= skip:
                skip -= there
                continue
            drawn = keyed_rng(self.seed, "images", "stream", "shuffle", number, self.rank, lane).integers(2**63)
            shuffle = webdataset.shuffle(_BUFFER, initial=_BUFFER, rng=random.Random(int(drawn)))
            seen = 0
            for tar, place, sample in shuffle(record for one in tars for record in self._read(one)):
                seen += 1
                if seen > skip:
                    yield number, tar, place, sample
            if not seen:
                raise UserError(f"{shown(stream.urls[tars[0]])}: no images (KEY.jpg with KEY.cls) in it")
            skip = max(0, skip - seen)

    def _read(self, tar: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
        from webdataset.tariterators import group_by_keys, tar_file_expander

        url, place = self.stream.urls[tar], -1
        try:
            with open_url(url) as file:
                for place, sample in enumerate(group_by_keys(tar_file_expander([{"url": url, "stream": file}]))):
                    yield tar, place, sample
        except UserError:
            raise
        except Exception as error:  # on a bad stream tarfile and file systems raise many kinds
            raise UserError(f"{shown(url)}: cannot be streamed ({one_line(error)})") from None
        if self.stream.counts is not None and place + 1 != self.stream.counts[tar]:
            raise UserError(f"{shown(url)}: has {place + 1} samples, its manifest says {self.stream.counts[tar]}")

    def _sample(self, number: int, tar: int, place: int, sample: dict[str, Any]) -> dict[str, Any]:
        name = f"{file_name(self.stream.urls[tar])}:{sample['__key__']}"
        images = [data for extension, data in sample.items() if extension in IMAGE_EXTENSIONS]
        if len(images) != 1 or "cls" not in sample:
            raise UserError(f"{name}: is not one image with its label (.cls) right beside it, which streaming needs")
        if re.fullmatch(rb"\s*[0-9]{1,9}\s*", sample["cls"]) is None or int(sample["cls"]) >= self.stream.num_classes:
            raise UserError(f"{name}: its label is not a number below model.num_classes={self.stream.num_classes}")
        damage, identity = None, tar << 32 | place
        try:
            rng = keyed_rng(self.seed, "images", "stream", "augment", number, tar, place)
            image = self.transform(self.transform.open(images[0]), rng)
        except DamagedSample as error:
            damage = (identity, name, str(error))
            image = torch.zeros(3, self.transform.size, self.transform.size, dtype=torch.uint8)
        label = int(sample["cls"])
        return {"image": image, "label": label, "valid": damage is None, "sample": identity, "damage": damage}
