"""GLUE's tasks of sentences and pairs, in the files of its download (Wang et al., arXiv 1804.07461).

A line is a row and tabs separate its columns. Quotes are plain characters: sentences have unpaired ones. STS-B is left
out, as it is a regression.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitwarm.errors import UserError

if TYPE_CHECKING:
    from vitwarm.data.text.readers import TextSplit

_MSR, _DEV_IDS = "msr_paraphrase_train.txt", "dev_ids.tsv"  # MRPC as its authors publish it, and GLUE's split of it
_BOM = b"\xef\xbb\xbf"  # in front of MRPC's header
_LONGEST = 1 << 20  # bytes of a line; longer ones are damaged


@dataclass(frozen=True)
class GlueTask:
    """The format of a task's files.

    Attributes:
        folder: its name in the download.
        sentences: columns of the sentence, or of both.
        label: column of the label.
        labels: how the files write each label -> its name; their order numbers them.
        dev: files that are evaluated on, without `.tsv`.
        columns: columns of files without a header; None where the first line names them.
    """

    folder: str
    sentences: tuple[str, ...]
    label: str
    labels: dict[str, str]
    dev: tuple["TextSplit", ...] = ("dev",)
    columns: tuple[str, ...] | None = None


_ENTAILMENT = {"entailment": "entailment", "not_entailment": "not_entailment"}
TASKS = {
    "cola": GlueTask(
        "CoLA",
        ("sentence",),
        "label",
        {"0": "unacceptable", "1": "acceptable"},
        columns=("source", "label", "star", "sentence"),
    ),
    "sst2": GlueTask("SST-2", ("sentence",), "label", {"0": "negative", "1": "positive"}),
    "mrpc": GlueTask("MRPC", ("#1 String", "#2 String"), "Quality", {"0": "not_equivalent", "1": "equivalent"}),
    "qqp": GlueTask("QQP", ("question1", "question2"), "is_duplicate", {"0": "not_duplicate", "1": "duplicate"}),
    "mnli": GlueTask(
        "MNLI",
        ("sentence1", "sentence2"),
        "gold_label",
        {name: name for name in ("entailment", "neutral", "contradiction")},
        dev=("dev_matched", "dev_mismatched"),
    ),
    "qnli": GlueTask("QNLI", ("question", "sentence"), "label", _ENTAILMENT),
    "rte": GlueTask("RTE", ("sentence1", "sentence2"), "label", _ENTAILMENT),
    "wnli": GlueTask("WNLI", ("sentence1", "sentence2"), "label", {"0": "not_entailment", "1": "entailment"}),
}


@dataclass(frozen=True)
class Row:
    """A line of a file.

    Attributes:
        number: number of the line, from 1.
        label: its number; None in a damaged row.
        sentences: as bytes, without spaces around them.
        damage: why this is not a row of the task; None when it is one.
    """

    number: int
    label: int | None
    sentences: list[bytes]
    damage: str | None = None


def glue_files(task: str, folder: Path, split: str) -> list[Path]:
    """The files that hold a split: one, or MRPC's original and the numbers of what belongs to `dev`.

    Args:
        task: key of `TASKS`.
        folder: folder of the task.
        split: `train`, or one of `GlueTask.dev`.

    Raises:
        UserError: they are not there.
    """
    name = TASKS[task].folder
    nested = f"; did you mean {folder / name}?" if (folder / name).is_dir() else ""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; text.task={task} reads the folder {name} of GLUE's download")
    if (file := folder / f"{split}.tsv").is_file():
        return [file]
    if task == "mrpc" and (folder / _MSR).is_file():
        if (folder / _DEV_IDS).is_file():
            return [folder / _MSR, folder / _DEV_IDS]
        raise UserError(f"{folder}: {_MSR} needs {_DEV_IDS} of GLUE beside it, which names the rows of dev")
    raise UserError(f"{folder}: no {file.name}, which the folder {name} of GLUE's download has{nested}")


def glue_rows(task: str, path: Path, split: str) -> Iterator[Row]:
    """The rows of one file of `glue_files`; that of `dev` numbers has none.

    Raises:
        UserError: the first line does not name the task's columns.
        OSError: the file cannot be read.
    """
    if path.name == _DEV_IDS:
        return
    described = TASKS[task]
    numbers = {label.encode(): i for i, label in enumerate(described.labels)}
    dev = _dev_ids(path.with_name(_DEV_IDS)) if path.name == _MSR else None
    with open(path, "rb") as file:
        lines = iter(lambda: file.readline(_LONGEST), b"")
        columns = [c.encode() for c in described.columns or ()] or next(lines, b"").removeprefix(_BOM).split(b"\t")
        columns = [c.strip() for c in columns]
        wanted = [c.encode() for c in (described.label, *described.sentences)]
        if lacking := next((c.decode() for c in wanted if c not in columns), None):
            raise UserError(f"{path}: its first line has no column {lacking}; it is not a file of {described.folder}")
        label_at, *sentences_at = map(columns.index, wanted)
        for number, line in enumerate(lines, 1 if described.columns else 2):
            if not line.strip():
                continue
            fields = line.rstrip(b"\r\n").split(b"\t")
            if len(fields) != len(columns):
                yield Row(number, None, [], f"{len(fields)} columns, not {len(columns)}")
                continue
            if dev is not None and ((fields[1], fields[2]) in dev) != (split == "dev"):
                continue
            sentences = [fields[at].strip() for at in sentences_at]
            label = numbers.get(fields[label_at].strip())
            if label is None:
                shown = fields[label_at].decode(errors="replace")
                yield Row(number, None, sentences, f"label {shown!r} is none of {', '.join(described.labels)}")
            else:
                yield Row(number, label, sentences)


def _dev_ids(path: Path) -> set[tuple[bytes, ...]]:
    return {tuple(line.split()) for line in path.read_bytes().splitlines()}
