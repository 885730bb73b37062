"""Streams from a server on this machine, against the same tars read with tarfile."""

import functools
import http.server
import io
import itertools
import json
import tarfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sourcemaking import pixels, quiet, tree
from tarmaking import encode, samples, write_tar

from vitwarm.data.download import DownloadCache
from vitwarm.data.images import TrainTransform
from vitwarm.data.making import Options
from vitwarm.data.opening import describe, open_source
from vitwarm.data.order import ImageOrder
from vitwarm.data.shards import ShardSet
from vitwarm.data.streaming import open_stream, stream_loader
from vitwarm.data.web import open_url
from vitwarm.errors import UserError
from vitwarm.recipe import load_recipe
from vitwarm.stages.images import ImagesStage
from vitwarm.stages.registry import Setup

SIDE, COUNTS = 12, (7, 3, 12, 1, 9)
AS_IS = TrainTransform(SIDE, crop="none", hflip=0)
CROPPED = TrainTransform(SIDE)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Counts requests; may break connections off, or refuse."""

    asked: Counter = Counter()
    cut: int | None = None  # bytes after which a connection breaks
    ranges = True
    error: int | None = None

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        self.asked[path.name] += 1
        if self.error is not None or not path.is_file():
            self.send_error(self.error or 404)
            return
        data, start = path.read_bytes(), 0
        if self.ranges and (wanted := self.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        # A server without ranges gets a little further each time, or its client never would.
        end = None if self.cut is None else start + self.cut * (1 if self.ranges else self.asked[path.name])
        self.wfile.write(data[start:end])

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """(URL of a folder, the folder, the handler that serves it)."""
    handler = type("Served", (Handler,), {"asked": Counter()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(tmp_path)))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("vitwarm.data.web._PAUSE", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", tmp_path, handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def tars(served):
    """(brace URL, [(label, pixels) of each tar], handler): five uneven tars with a manifest."""
    url, folder, handler = served
    truth, first = [], 0
    for number, count in enumerate(COUNTS):
        rows = [(row % 4, pixels(row, SIDE)) for row in range(first, first + count)]
        members = [
            member
            for row, (label, image) in enumerate(rows)
            for member in ((f"k{row}.png", encode(image)), (f"k{row}.cls", str(label).encode()))
        ]
        write_tar(folder / f"train-{number}.tar", members)
        truth.append(rows)
        first += count
    quiet(folder)
    return f"{url}/train-{{0..{len(COUNTS) - 1}}}.tar", truth, handler


def load(url, start, stop, *, batch=4, seed=0, transform=AS_IS, samples=None, **where):
    stream = open_stream(url, samples, num_classes=4)
    order = ImageOrder(len(stream), batch, seed)
    return list(stream_loader(stream, transform, order, start, stop, pin_memory=False, **where))


def rows(batches) -> list[tuple[int, torch.Tensor, int]]:
    """(sample, image, label) of every row."""
    parts = [zip(b["sample"].tolist(), b["image"], b["label"].tolist(), strict=True) for b in batches]
    return [row for part in parts for row in part]


def same(a: list[dict], b: list[dict]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x[name], y[name])
        for x, y in zip(a, b, strict=True)
        for name in ("image", "label", "sample", "valid")
    )


def test_each_pass_shows_each_image_once_in_an_order_of_its_own(tars):
    url, truth, _ = tars
    batches = load(url, 0, 24)  # 32 images: three passes
    seen = rows(batches)
    passes = [seen[i : i + 32] for i in (0, 32, 64)]
    everything = sorted(tar << 32 | row for tar, count in enumerate(COUNTS) for row in range(count))
    for one in passes:
        assert sorted(sample for sample, _, _ in one) == everything
        for sample, image, label in one:
            want_label, want = truth[sample >> 32][sample & 0xFFFFFFFF]
            assert label == want_label and np.array_equal(image.permute(1, 2, 0).numpy(), want)
    orders = {tuple(sample for sample, _, _ in one) for one in passes}
    assert len(orders) == 3 and tuple(everything) not in orders


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_ranks_and_workers_share_a_pass_without_overlap(tars):
    """Every lane of every rank up to the end of its first pass: together, each image once."""
    stream = open_stream(tars[0], None, 4)
    for world, workers in ((2, 2), (5, 1), (1, 5), (3, 8)):
        order, found = ImageOrder(len(stream), world, 0), []
        for rank in range(world):
            dataset = stream_loader(stream, AS_IS, order, 0, 1, rank, world, workers=workers).dataset
            for lane in range(dataset.lanes):
                first = itertools.takewhile(lambda record: record[0] == 0, dataset._records(lane, 0))
                found += [(tar, place) for _, tar, place, _ in first]
        assert sorted(found) == [(tar, row) for tar, count in enumerate(COUNTS) for row in range(count)]


def test_uneven_ranks_all_go_on_to_the_last_step(tars):
    """Five ranks, one tar each; the smallest has a single image and starts 20 passes while others go through three."""
    for rank in range(5):
        batches = load(tars[0], 0, 20, batch=5, rank=rank, world=5)
        assert [len(batch["label"]) for batch in batches] == [1] * 20


def test_reproducible_and_keyed_by_the_seed(tars):
    url = tars[0]
    for where in ({}, {"workers": 2}, {"rank": 1, "world": 2, "workers": 1}):
        first = load(url, 0, 20, transform=CROPPED, **where)
        assert same(first, load(url, 0, 20, transform=CROPPED, **where))
        assert not same(first, load(url, 0, 20, transform=CROPPED, seed=1, **where))
    assert same(load(url, 0, 9), load(url, 0, 9, workers=1))
    batches = load(url, 0, 16, transform=CROPPED)
    images, again = ({sample: image for sample, image, _ in rows(half)} for half in (batches[:8], batches[8:]))
    assert sum(torch.equal(images[i], again[i]) for i in images) < 3, "augmented anew in each pass"


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize("where", [{}, {"workers": 2}, {"workers": 2, "device_batch": 1, "rank": 1, "world": 2}])
def test_a_later_start_gives_the_same_rest(tars, served, where, manifest):
    if not manifest:
        (served[1] / "manifest.json").unlink()
    samples = None if manifest else sum(COUNTS)
    whole = load(tars[0], 0, 30, transform=CROPPED, samples=samples, **where)
    a_step = len(whole) // 30
    for start in (1, 2, 7, 13, 29):
        rest = load(tars[0], start, 30, transform=CROPPED, samples=samples, **where)
        assert same(rest, whole[start * a_step :])


def test_only_the_pass_in_question_is_read_again(tars):
    url, _, handler = tars
    handler.asked.clear()
    load(url, 79, 80)  # the last batch of the tenth pass
    assert all(handler.asked[f"train-{i}.tar"] <= 2 for i in range(5)), handler.asked


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_connections_are_taken_up(tars, ranges):
    url, _, handler = tars
    whole = load(url, 0, 16)
    handler.cut, handler.ranges = 3000, ranges
    handler.asked.clear()
    assert same(whole, load(url, 0, 16))
    assert handler.asked["train-2.tar"] > 4
    with open_url(url.replace("{0..4}", "2")) as file:
        assert len(file.read()) % 512 == 0


def refused(message: str, call) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_fails_ends_the_run_in_one_line(tars, workers):
    url, _, handler = tars
    stream = open_stream(url, None, 4)
    loader = stream_loader(stream, AS_IS, ImageOrder(len(stream), 4, 0), 0, 50, workers=workers, pin_memory=False)
    handler.error = 404
    handler.asked.clear()
    refused(r"train-\d.tar: cannot be streamed \(HTTP 404", lambda: list(loader))
    assert max(handler.asked.values()) == 1, "what is not there is not asked for again"
    handler.error = 503  # last: the worker that is not reported may still be asking
    refused(r"train-\d.tar: cannot be streamed \(HTTP 503", lambda: list(loader))
    assert max(handler.asked.values()) > 1
    handler.error = 404
    with pytest.raises(UserError, match="404") as caught:
        load(f"{url}?signature=a/secret", 0, 1, samples=sum(COUNTS))
    assert "secret" not in str(caught.value)
    handler.error, handler.cut = None, 0
    refused("cannot be streamed .cut short at byte 0 of", lambda: list(loader))


def test_tars_that_are_not_what_they_should_be(served):
    url, folder, _ = served
    good = samples(6)

    def stream(members, count=6, name="t.tar"):
        write_tar(folder / name, members)
        return lambda: load(f"{url}/{name}", 0, 6, samples=count)

    stream(good)()
    refused("t.tar:s001: is not one image with its label", stream(good[:3] + good[4:] + good[3:4]))
    refused("t.tar:s000: is not one image with its label", stream(good[1:]))
    refused("t.tar:s003: its label is not a number below model.num_classes=4", stream([*good[:7], ("s003.cls", b"4")]))
    refused("t.tar: no images", stream([("a.txt", b"x")][:0]))
    stream(good)
    data = (folder / "t.tar").read_bytes()
    (folder / "t.tar").write_bytes(data[:2000])
    refused("t.tar: cannot be streamed .cut short", lambda: load(f"{url}/t.tar", 0, 6, samples=6))
    (folder / "t.tar").write_bytes(b"no tar " * 999)
    refused("t.tar: cannot be streamed", lambda: load(f"{url}/t.tar", 0, 6, samples=6))
    stream(good)
    quiet(folder)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:  # cut between two samples: tarfile takes it for whole
        (folder / "t.tar").write_bytes(data[: archive.getmembers()[8].offset])
    refused("t.tar: cannot be streamed .cut short: no end-of-archive mark", lambda: load(f"{url}/t.tar", 0, 6))
    write_tar(folder / "t.tar", good[:8])
    refused("t.tar: has 4 samples, its manifest says 6", lambda: load(f"{url}/t.tar", 0, 6))
    (folder / "t.tar").write_bytes(data + b"x")
    refused("t.tar: cannot be streamed .data after its end-of-archive mark", lambda: load(f"{url}/t.tar", 0, 6))


def test_a_stream_groups_as_a_tar_on_a_disk_does(served):
    url, folder, _ = served
    apple = [(f"{place}{name}", b"apple") for name, _ in samples(2) for place in ("._", "d/._", "__MACOSX/d/")]
    fields = [("d/s000.seg.png", b"x"), ("d/s001.coarse.cls", b"x"), ("d/s001.json", b"{}")]
    dotted = [(f"d/photo.{name}", data) for name, data in samples(3, first=4)]
    plain = [(f"d/{name}", data) for name, data in samples(2)]
    for members in ([*apple, *plain, *fields[1:], *dotted], [plain[1], fields[0], plain[0], *plain[2:], *dotted]):
        path = write_tar(folder / "t.tar", members)
        shards = ShardSet([path])
        found = rows(load(f"{url}/t.tar", 0, 1, batch=len(shards), samples=len(shards)))
        assert sorted(label for _, _, label in found) == sorted(shards.labels.tolist()) and len(found) == 5
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("z.png")
        info.type, info.linkname = tarfile.LNKTYPE, "d/s000.png"
        archive.addfile(info)
    refused("t.tar:z: has a link for a part", lambda: load(f"{url}/t.tar", 0, 3, batch=2, samples=6))


def test_validation_tars_are_not_among_those_of_a_stream(tars, served, tmp_path):
    val = tmp_path / "copy.tar"
    val.write_bytes((served[1] / "train-3.tar").read_bytes())
    keys = ["recipe=digits_default", f"images.train={tars[0]}", "train.global_batch=4"]
    refused(
        "copy.tar is train-3.tar of images.train",
        lambda: ImagesStage(load_recipe([*keys, f"images.val={val}"]), Setup()),
    )
    other = write_tar(tmp_path / "other.tar", samples(2, first=900))
    stage = ImagesStage(load_recipe([*keys, f"images.val={other}"]), Setup())
    size = sum(path.stat().st_size for path in served[1].glob("train-*.tar"))
    assert stage.data_line().startswith(
        f"images: train 32 images in 5 tars, {size / 1e3:.1f} kB; val 2 images of 2 classes"
    )


def test_a_stream_of_smaller_images_says_so(served):
    url, folder, _ = served
    tree(folder / "in")
    quiet(folder / "in", folder / "out", options=Options(max_side=9, images_per_shard=9))
    stream = open_stream(f"{url}/out/train-{{00000..00001}}.tar", None, 3)
    assert describe(stream, 18, None)["train"]["max_side"] == stream.max_side == 9


def test_a_damaged_image_is_black_named_and_weighs_nothing(served):
    url, folder, _ = served
    members = samples(4)
    members[2] = ("s001.png", members[2][1][:60])
    write_tar(folder / "t.tar", members)
    (batch,) = load(f"{url}/t.tar?signature=secret", 0, 1, samples=4)
    row = batch["sample"].tolist().index(1)
    assert batch["valid"].tolist() == [i != row for i in range(4)] and not batch["image"][row].any()
    ((sample, name, reason),) = batch["damage"]
    assert (sample, name) == (1, "t.tar:s001") and "cannot be decoded" in reason


def test_through_fsspec(tars, served, tmp_path_factory):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in served[1].iterdir():
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    assert same(load("memory://bucket/train-{0..4}.tar", 0, 20), load(tars[0], 0, 20))
    local = Path(DownloadCache(str(tmp_path_factory.mktemp("cache"))).local("memory://bucket/train-*.tar", "train"))
    kept = {path.name: path.read_bytes() for path in local.parent.iterdir()}
    assert kept == {path.name: path.read_bytes() for path in served[1].glob("*.tar")} | {
        "manifest.json": (served[1] / "manifest.json").read_bytes()
    }
    refused("manifest.json: cannot be read", lambda: load("memory://nowhere/absent.tar", 0, 1))


def test_a_cache_of_a_web_server(tars, served, tmp_path_factory):
    """With a manifest beside the tars sizes and hashes are known; without one, the size that came."""
    url, _, handler = tars
    _, folder, _ = served
    root = tmp_path_factory.mktemp("cache")
    truth = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".tar", ".json")}

    def kept(cache: DownloadCache, spec: str) -> dict[str, bytes]:
        below = Path(cache.local(spec, "train")).parent
        return {path.name: path.read_bytes() for path in below.iterdir()}

    cache, signed = DownloadCache(str(root / "a")), f"{url}?signature=a/secret"
    handler.asked.clear()
    assert kept(cache, signed) == truth and set(handler.asked.values()) == {1}
    assert not any(b"secret" in path.read_bytes() for path in (root / "a").glob("*.json"))
    handler.error = 404
    assert kept(cache, signed.replace("a/secret", "another")) == truth
    shards = open_source(f"{url}?signature=b", "train", "images.train", str(root / "a"))
    assert len(shards) == sum(COUNTS) and shards.paths[0].is_relative_to(root / "a/http")
    refused("train-0.tar: cannot be downloaded .HTTP 404", lambda: kept(DownloadCache(str(root / "d")), url))
    handler.error = None
    data = truth["train-2.tar"]
    (folder / "train-2.tar").write_bytes(data[:2000] + b"x" + data[2001:])
    refused("train-2.tar: came with", lambda: kept(DownloadCache(str(root / "b")), url))
    (folder / "train-2.tar").write_bytes(data)
    handler.cut = 3000  # broken connections are taken up
    assert kept(DownloadCache(str(root / "b")), url) == truth
    handler.cut = None
    (folder / "manifest.json").unlink()
    cache = DownloadCache(str(root / "c"))
    del truth["manifest.json"]
    assert kept(cache, url) == truth
    one = next(root.glob("c/http/*/train-1.tar"))
    one.write_bytes(one.read_bytes()[:512])
    assert not cache.holds(url, "train") and kept(cache, url) == truth


def test_what_cannot_be_streamed_is_refused(tars, served):
    url, _, handler = tars
    for spec, message in [
        ("file:///etc/train-0.tar", "not a URL to read from"),
        ("local:///etc/train-0.tar", "not a URL to read from"),
        ("simplecache::http://host/a.tar", "not a URL to read from"),
        ("pipe:curl http://host/a.tar", "not a URL to read from"),
        ("http://host/*.tar", "cannot list its files"),
        ("http://host/{0..1.tar", "braces of this pattern do not balance"),
        ("http://host/{a,a}.tar", "names a tar twice"),
        ("nosuch://host/a.tar", "nosuch"),
        (url.replace("4}", "5}"), "does not list train-5.tar"),
    ]:
        refused(message, lambda spec=spec: open_stream(spec, 10, 4))
    refused("images.train_samples=31, but .* counts 32", lambda: open_stream(url, 31, 4))
    refused("too few for 6 processes", lambda: load(url, 0, 1, batch=6, rank=0, world=6))
    handler.error = 404
    refused("manifest.json: cannot be read .HTTP 404.*set images.train_samples", lambda: open_stream(url, None, 4))
    assert len(open_stream(url, 31, 4)) == 31
    handler.error = None
    (served[1] / "manifest.json").write_text(json.dumps({"format_version": 9}))
    refused("has format version 9", lambda: open_stream(url, None, 4))


def test_the_image_stage_trains_from_a_stream(tars, tmp_path):
    def stage(*more):
        overrides = ["recipe=digits_default", f"images.train={tars[0]}", "images.val=", "images.epochs=2"]
        return ImagesStage(load_recipe([*overrides, "train.global_batch=8", "model.num_classes=10", *more]), Setup())

    import timm

    images = stage()
    assert images.steps == 8 and images.samples == 64
    images.bind(timm.create_model("test_vit", img_size=16, patch_size=4, num_classes=10))
    batches = list(images.batches(0, 1, 2, 2))
    assert len(batches) == 16 and [b.offset for b in batches[:4]] == [4, 6, 4, 6]
    assert all(b.images.shape[0] == 2 and b.weight == 2.0 for b in batches)
    late = list(images.batches(5, 1, 2, 2))
    assert all(torch.equal(a.images, b.images) for a, b in zip(batches[10:], late, strict=True))
    refused("images.subset needs random access", lambda: stage("images.subset=50%"))
    refused("images.repeats needs random access", lambda: stage("images.repeats=2"))
    refused("images.train_samples is for streamed tars", lambda: stage("images.train=digits", "images.train_samples=9"))


def test_no_pixel_is_decoded_to_skip(tars, monkeypatch):
    decoded = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **k: decoded.append(1) or real(*a, **k))
    load(tars[0], 7, 8)
    assert len(decoded) == 4
