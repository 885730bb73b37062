"""A cache of files from elsewhere: downloaded whole, once, by one process. After that a run is one on local files.

| in the folder | content |
|---|---|
| `hf/datasets/OWNER/NAME@COMMIT/...`, `https/HOST/...`, `s3/BUCKET/...` | the files, under their own names |
| `DIGEST.json` | what one URL names: its root, with the commit, and path, size and SHA-256 of each file |

What a URL names is looked up once. So a whole cache needs no connection, and a repository that goes on changes no run.
"""

import errno
import hashlib
import json
import logging
import posixpath
import shutil
from dataclasses import asdict, replace
from pathlib import Path

from vitwarm.data import manifest as manifests
from vitwarm.data.patterns import expand_braces
from vitwarm.data.remote import Found, RemoteFile, find_remote, is_url
from vitwarm.data.web import fetch, is_web, one_line, shown
from vitwarm.errors import Interrupted, UserError, without_secrets
from vitwarm.files import expanded, locked, sha256_of, whole_file, write_text
from vitwarm.parallel import progress_bar
from vitwarm.signals import check_stop

_log = logging.getLogger(__name__)


class DownloadCache:
    """A folder with copies of files from elsewhere.

    Args:
        folder: made when it is needed; `~` is replaced.
    """

    def __init__(self, folder: str):
        self.folder = expanded(folder).absolute()

    def local(self, spec: str, split: str | None = None) -> str:
        """A specification of local files that names what `spec` does; what is not here yet is downloaded.

        Other processes that need the same cache wait meanwhile. A whole one is used without a lock, so it may be
        read-only.

        Args:
            spec: files and folders with `::` between them, among them URLs, as `find_remote` takes them.
            split: `train` or `val` of images, with the manifests beside tars; None of text.

        Raises:
            UserError: a URL names nothing, or a file cannot be downloaded or is not what was promised; a full disk.
            Interrupted: a signal asks to stop; the files that are whole stay.
            OSError: no permission.
        """
        parts = spec.split("::") if is_url(spec) else [spec]
        return "::".join(self._place(self._filled(part, split)) if is_url(part) else part for part in parts)

    def holds(self, spec: str, split: str | None = None) -> bool:
        """Whether `local` would download nothing."""
        ledgers = [self._ledger(part, split) for part in spec.split("::") if is_url(part)]
        return all((found := _read(ledger)) is not None and not self._missing(found) for ledger in ledgers)

    def _ledger(self, url: str, split: str | None) -> Path:
        told = json.dumps([without_secrets(url), split])
        return self.folder / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"

    def _place(self, found: Found, path: str | None = None) -> str:
        scheme, _, server = found.root.partition("://")
        return str(self.folder / scheme / server / (found.pattern if path is None else path))

    def _missing(self, found: Found) -> list[RemoteFile]:
        missing = []
        for file in found.files:
            place = Path(self._place(found, file.path))
            if file.bytes is None or not place.is_file() or place.stat().st_size != file.bytes:
                missing.append(file)
        return missing

    def _filled(self, url: str, split: str | None) -> Found:
        ledger = self._ledger(url, split)
        found = _read(ledger)
        if found is not None and not self._missing(found):
            return found
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be made ({error.strerror}); name another folder") from None
        with locked(self.folder / "lock"):
            found = _read(ledger)  # another process may have been first
            if found is None:
                found = find_remote(url, split)
                found = self._with_manifests(found) if split else found
                _write(ledger, found)
            missing = self._missing(found)
            self._check_space(missing)
            addresses = dict(zip((file.path for file in found.files), _addresses(url, found), strict=True))
            if missing:
                _log.info(
                    "downloading %d of %d files of %s to %s", len(missing), len(addresses), shown(url), self.folder
                )
            with progress_bar(len(missing), "download", "file") as bar:
                for file in missing:
                    check_stop()
                    try:
                        whole = self._download(found, file, addresses[file.path])
                    except FileNotFoundError as error:
                        address = shown(addresses[file.path])
                        raise UserError(f"{address}: cannot be downloaded ({one_line(error)})") from None
                    if whole != file:
                        found = replace(found, files=[whole if one == file else one for one in found.files])
                        _write(ledger, found)
                    bar.update()
            return found

    def _with_manifests(self, found: Found) -> Found:
        """With the manifests beside the tars, and what they say of these."""
        files = {file.path: file for file in found.files}
        for folder in dict.fromkeys(posixpath.dirname(path) for path in files if path.endswith(".tar")):
            beside = RemoteFile(posixpath.join(folder, manifests.NAME))
            try:
                whole = self._download(found, beside, f"{found.root}/{beside.path}")
            except FileNotFoundError:
                continue
            manifest = manifests.beside(Path(self._place(found, folder)))
            assert manifest is not None  # it has just been written
            for name, shard in manifest.shards().items():
                if (path := posixpath.join(folder, name)) in files:
                    files[path] = RemoteFile(path, shard.bytes, shard.sha256)
            files[beside.path] = whole
        return replace(found, files=list(files.values()))

    def _check_space(self, missing: list[RemoteFile]) -> None:
        needed, free = sum(file.bytes or 0 for file in missing), shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"{self.folder}: {needed / 1e9:,.1f} GB are still to be downloaded, and only {free / 1e9:,.1f} GB are "
                "free; free space, or name a folder on another disk"
            )

    def _download(self, found: Found, file: RemoteFile, url: str) -> RemoteFile:
        """Download a file and say what is known of it now.

        Raises:
            FileNotFoundError: there is no such file.
        """
        place = Path(self._place(found, file.path))
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(
                f"{place}: a file stands where the cache needs a folder; remove it, and run again"
            ) from None
        with whole_file(place) as aside:
            try:
                fetch(url, aside)
            except (UserError, Interrupted, FileNotFoundError):
                raise
            except Exception as error:  # file systems raise many kinds
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error):
                    raise UserError(
                        f"{place}: the disk is full; free space, or name a folder on another disk, then run the same "
                        "command again: the files that are whole stay"
                    ) from None
                raise UserError(f"{shown(url)}: cannot be downloaded ({one_line(error)}); run again to go on") from None
            size = aside.stat().st_size
            if file.bytes not in (None, size) or (file.sha256 and sha256_of(aside) != file.sha256):
                raise UserError(
                    f"{shown(url)}: came with {size} bytes that are not the {file.bytes} of SHA-256 {file.sha256} that "
                    "were promised; run again"
                )
        return replace(file, bytes=size)


def _addresses(url: str, found: Found) -> list[str]:
    """Where to get the files; of a web server with what stands behind a question mark, which no file of ours keeps."""
    if not is_web(url):
        return found.urls
    named = expand_braces(url)
    return named + found.urls[len(named) :]


def _read(ledger: Path) -> Found | None:
    try:
        tree = json.loads(ledger.read_bytes())
        return Found(tree["root"], tree["pattern"], [RemoteFile(**file) for file in tree["files"]])
    except (OSError, ValueError, KeyError, TypeError):  # absent, or damaged: it can be made again
        return None


def _write(ledger: Path, found: Found) -> None:
    write_text(ledger, json.dumps(asdict(found), indent=1) + "\n")
