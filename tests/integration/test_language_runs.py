"""A run of a decoder, killed in either stage, ends with the same bits; two processes see what one sees."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import yaml
from harness import Command, log, weights

TINY = {
    "description": "tiny",
    "model": {"decoder": {"size": "2_2_8", "dropout": 0.1}},
    "warmup": {
        "objective": "next_token",
        "rule": {"name": "set", "symbols": 9},
        "length": 14,
        "budget": "10 steps",
        "global_batch": 16,
        "lr_warmup": "2 steps",
        "ema": 0.9,
        "val_rows": 9,
    },
    "train": {"global_batch": 16, "lr_warmup": "2 steps", "clip_grad": 1.0},
    "run": {"log_every": 1, "checkpoint_every": 4, "device_batch": 4, "workers": 1},
}
STATES = {"objective": "next_state", "rule": {"name": "eca", "width": 8}, "length": 5}
ADDITION = {"task": "addition", "size": 2, "budget": "10 steps", "val_rows": 9, "eval_every": 4}
TEXT = {"length": 12, "budget": "10 steps", "eval_every": 4}
LINES = ["one two three", "vier fünf sechs", "a = b + c", "d", "nine ten eleven twelve", "x" * 30]

# The draws of dropout are each process's own.
STILL = "model.decoder.dropout=0.0"
SLOW = "import time; from torch.optim import AdamW; s = AdamW.step; AdamW.step = lambda *a: (time.sleep(.05), s(*a))"


def documents(path: Path, count: int) -> str:
    lines = [json.dumps({"text": f"{path.stem} {i} {LINES[i % len(LINES)]}"}) for i in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def problems(folder: Path) -> str:
    """Sums in the layout of DeepMind Mathematics."""
    for split in ("train-easy", "interpolate", "extrapolate"):
        (folder / split).mkdir(parents=True)
        (folder / split / "sums.txt").write_text("".join(f"{i} + {i}?\n{2 * i}\n" for i in range(30)))
    return str(folder)


def main_stage(kind: str, folder: Path) -> tuple[str, dict]:
    """Name of the main stage, and its section."""
    if kind == "text":
        return "text", TEXT | {
            "train": documents(folder / "train.jsonl", 60),
            "val": documents(folder / "val.jsonl", 7),
        }
    if kind == "mathematics":
        return "text", TEXT | {"task": kind, "tokenizer": "chars", "train": problems(folder / "problems")}
    return "algorithmic", ADDITION


@pytest.fixture(scope="module", params=["next_token", "next_state", "text", "mathematics"])
def recipe(request, tmp_path_factory):
    """A file, and the name of its main stage; the warm-up of all but one asks for the next token."""
    folder = tmp_path_factory.mktemp(request.param)
    stage, section = main_stage(request.param, folder)
    warmup = TINY["warmup"] | (STATES if request.param == "next_state" else {})
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"warmup": warmup, stage: section}))
    return folder / "tiny.yaml", stage


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, recipe):
    scratch = tmp_path_factory.mktemp("undisturbed")
    command = Command([f"recipe={recipe[0]}", f"run.dir={scratch / 'run'}"], scratch)
    assert command.wait() == 0, command.err
    return scratch / "run"


def assert_same(run: Path, undisturbed: Path) -> None:
    """The same bits, and each step logged once."""
    assert weights(run) == weights(undisturbed)
    losses = [[(e["stage"], e["step"], e["loss"]) for e in log(f)] for f in (run, undisturbed)]
    assert losses[0] == losses[1] and len(losses[0]) == 20


@pytest.mark.parametrize("second", [False, True], ids=["warmup", "main"])
def test_killed_and_started_again(tmp_path, recipe, undisturbed, second):
    arguments = [f"recipe={recipe[0]}", f"run.dir={tmp_path / 'run'}"]
    stage = recipe[1] if second else "warmup"
    command = Command(arguments, tmp_path, before=SLOW)
    command.wait_for(lambda: len(log(tmp_path / "run", stage=stage)) >= 6)
    os.kill(command.pid, signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    assert Command(arguments, tmp_path).wait() == 0
    assert_same(tmp_path / "run", undisturbed)


def test_killed_at_random_moments(tmp_path, recipe, undisturbed):
    """Behind a random step and somewhere within the next one, again and again until the end is near."""
    arguments = [f"recipe={recipe[0]}", f"run.dir={tmp_path / 'run'}"]
    seed = time.time_ns()
    rng, last = random.Random(seed), 0
    while last < 17:
        last = rng.randint(last + 2, 19)
        command = Command(arguments, tmp_path, before=SLOW)
        command.wait_for(lambda last=last: len(log(tmp_path / "run")) >= last)
        time.sleep(rng.uniform(0, 0.06))
        os.kill(command.pid, signal.SIGKILL)
        assert command.wait() == -signal.SIGKILL, f"seed {seed}"
    assert Command(arguments, tmp_path).wait() == 0, f"seed {seed}"
    assert_same(tmp_path / "run", undisturbed)


RECORD = """
import json
from vitwarm.stages.tokens import TokenStage
plain = TokenStage.batches
def recorded(self, start, rank, world, device_batch):
    share = self.optim.global_batch // world
    with open(f"{folder}/{self.name}-{world}-{rank}.jsonl", "w") as out:
        for i, batch in enumerate(plain(self, start, rank, world, device_batch)):
            inputs = batch.states if hasattr(batch, "states") else batch.tokens
            rows = [[row.tolist()] for row in inputs]
            if hasattr(batch, "targets"):  # positions are padded to the most of a micro-batch
                positions = inputs if batch.positions is None else batch.positions
                for row, *predicted in zip(rows, batch.weights, batch.targets, positions):
                    row += [(t, p) for w, t, p in zip(*(a.tolist() for a in predicted)) if w]
            print(json.dumps([start + i * device_batch // share, rows]), file=out, flush=True)
            yield batch
TokenStage.batches = recorded
"""


def by_step(folder: Path, stage: str, world: int) -> dict[int, list]:
    """step -> rows of the global batch with what is asked of each, the processes' shares in the order of ranks."""
    found: dict[int, list] = {}
    for rank in range(world):
        for line in (folder / f"{stage}-{world}-{rank}.jsonl").read_text().splitlines():
            step, rows = json.loads(line)
            found[step] = found.get(step, []) + rows
    return found


def test_one_process_or_two(tmp_path, recipe):
    """The same global batches at every step, the same losses, the same validation."""
    runs = []
    for world in (1, 2):
        runs.append(tmp_path / str(world))
        before = f"folder = {str(tmp_path)!r}\n{RECORD}"
        command = Command([f"recipe={recipe[0]}", f"run.dir={runs[-1]}", STILL], tmp_path, world=world, before=before)
        assert command.wait() == 0, command.err
    for stage in ("warmup", recipe[1]):
        batches, others = (by_step(tmp_path, stage, world) for world in (1, 2))
        assert batches == others and sorted(batches) == list(range(10))
        assert all(len(rows) == 16 for rows in batches.values()) and batches[0] != batches[1]
        for event in ("train", "eval"):
            one, two = (log(run, event, stage) for run in runs)
            assert len(one) == len(two) > 0
            for a, b in zip(one, two, strict=True):
                assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
                assert a.get("count") == b.get("count")
                assert b["accuracy"] == pytest.approx(a["accuracy"], abs=1e-6)
    losses = [e["loss"] for e in log(runs[0], stage=recipe[1])]
    assert min(losses) < losses[0]


KILLED = {
    "among the documents": """
encode, count = corpus.encode, []
def deadly(task):
    count.append(1)
    if len(count) == 4:
        os.kill(os.getpid(), 9)
    return encode(task)
corpus.encode = deadly
""",
    "before the manifest": """
write = corpus._write_json
def deadly(path, content):
    if path.name == "manifest.json":
        os.kill(os.getpid(), 9)
    write(path, content)
corpus._write_json = deadly
""",
    "before it has its name": """
from pathlib import Path
rename = Path.rename
def deadly(path, target):
    if path.parent.name == "text":
        os.kill(os.getpid(), 9)
    return rename(path, target)
Path.rename = deadly
""",
}


@pytest.mark.parametrize("moment", KILLED)
@pytest.mark.parametrize("recipe", ["text"], indirect=True)
def test_killed_while_it_tokenises(tmp_path, recipe, undisturbed, moment):
    """The next start makes the cache anew, to the same bytes, and leaves nothing of the first."""
    small = "import os; from vitwarm.data.text import corpus; corpus._JOB_BYTES = 200\n"
    arguments = [f"recipe={recipe[0]}", f"run.dir={tmp_path / 'run'}"]
    cache = {"VITWARM_CACHE": str(tmp_path / "cache")}
    assert Command(arguments, tmp_path, before=small + KILLED[moment], environment=cache).wait() == -signal.SIGKILL
    made = tmp_path / "cache" / "text"
    assert [p for p in made.iterdir() if p.is_dir() and p.name.endswith(".tmp")] and not (tmp_path / "run").exists()
    assert [p for p in made.iterdir() if p.is_dir() and not p.name.startswith(".")] == []
    command = Command(arguments, tmp_path, environment=cache)
    assert command.wait() == 0, command.err
    assert_same(tmp_path / "run", undisturbed)
    assert [p for p in made.iterdir() if p.name.endswith(".tmp")] == []
    for folder in (p for p in made.iterdir() if p.is_dir()):
        usual = Path(os.environ["VITWARM_CACHE"]) / "text" / folder.name
        for name in ("tokens.bin", "offsets.bin", "manifest.json"):
            assert (folder / name).read_bytes() == (usual / name).read_bytes(), name


@pytest.mark.parametrize("recipe", ["text"], indirect=True)
def test_half_precision_compiled_blocks_and_checkpointing_train_and_resume(tmp_path, recipe):
    """The wiring of the three, without the minutes of a compiler; killed between, the same bits."""
    on = [f"{stage}.{what}" for stage in ("warmup", "train") for what in ("precision=bf16", "compile=true")]
    arguments = [f"recipe={recipe[0]}", *on, "model.grad_checkpointing=true"]
    eager = "import torch; torch.compiler.set_stance('force_eager')\n"
    for name in ("whole", "killed"):
        command = Command([*arguments, f"run.dir={tmp_path / name}"], tmp_path, before=eager + SLOW)
        if name == "killed":
            command.wait_for(lambda: len(log(tmp_path / "killed", stage="text")) >= 6)
            os.kill(command.pid, signal.SIGKILL)
            command.wait()
            command = Command([*arguments, f"run.dir={tmp_path / name}"], tmp_path, before=eager)
        assert command.wait() == 0, command.err
    assert_same(tmp_path / "killed", tmp_path / "whole")
