"""The same commands under other locales: what is written is the same, byte for byte; nothing is a traceback."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from sourcemaking import jpeg

import vitwarm

pytestmark = pytest.mark.long

# (locale, whether Python may help itself to UTF-8 where it finds none); one that is not installed counts as C.
LOCALES = [("C.UTF-8", True), ("C", True), ("de_DE", True), ("nothing_such", True), ("C", False), ("de_DE", False)]
BARE = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
SCRIPT = """
import sys
from vitwarm.cli import call
from vitwarm.cli.guard import guarded
commands = [line.split("|") for line in sys.argv[1:]]
print(*(guarded(lambda words=words: call(words[0], words[1:])) for words in commands), file=open("codes", "w"))
"""
COMMANDS = [
    "make-shards|source=Bilder|out=shards|workers=0",
    "make-shards|source=shards",
    "recipes|list",
    "show|rule=dyck|k=2",
    "train|recipe=größe.yaml|run.dir=läufe/größe",
    "train|recipe=größe.yaml|run.dir=läufe/größe",  # finished: read again
    "train|recipe=größe.yaml|run.dir=läufe/größe|description=straße",
    "train|recipe=nirgendwo_ü",
    "train|recipe=größe.yaml|run.dir=r|text.train=gibt_es_nicht_é.txt",
]
CODES = "0 0 0 0 0 0 0 2 2"
RECIPE = """
description: Größe, 大きさ
model: {decoder: {size: "1_1_8"}}
warmup: {budget: 0}
text: {train: tëxt.txt, val: väl.txt, length: 8, budget: 2 steps, eval_every: 2}
train: {global_batch: 2, lr_warmup: 0}
run: {workers: 0}
"""


def inputs(folder):
    for i, name in enumerate(("Größe", "猫", "é")):
        (folder / "Bilder" / name).mkdir(parents=True)
        (folder / "Bilder" / name / f"ü{i}.jpg").write_bytes(jpeg(i))
    (folder / "tëxt.txt").write_text("Größe und 大きさ 𝕏\n" * 20, encoding="utf-8")
    (folder / "väl.txt").write_text("Straße é\n" * 9, encoding="utf-8")
    (folder / "größe.yaml").write_text(RECIPE, encoding="utf-8")


def written(folder):
    """Digests of what the commands wrote, times and speeds left out."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if (
            name.endswith((".tar", ".safetensors", "manifest.json", "recipe.yaml", "config.json", "tokens.bin"))
            and "index" not in name
        ):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif name.endswith("result.json"):
            found[name] = json.dumps(json.loads(path.read_text(encoding="utf-8"))["metrics"])
    return found


def test_locales(tmp_path, capsys):
    found, failures, counts = {}, [], Counter()
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(tmp_path / "de_DE")], check=False, capture_output=True
    )
    for locale, helped in LOCALES:
        folder, more = tmp_path / f"{locale}, {'helped' if helped else 'bare'}", {} if helped else BARE
        folder.mkdir()
        inputs(folder)
        (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
        latin = locale == "de_DE" and not made.returncode
        environment |= {"LOCPATH": str(tmp_path)} if latin else {}
        environment |= {"LC_ALL": locale, "OMP_NUM_THREADS": "1", "VITWARM_CACHE": str(folder / "cache")} | more
        environment |= {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(Path(vitwarm.__file__).parents[1])}
        words = [sys.executable, "script.py", *COMMANDS]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, timeout=300, check=False)
        said = done.stderr.decode(errors="replace")
        codes = (folder / "codes").read_text(encoding="utf-8").split() if (folder / "codes").exists() else []
        counts.update(codes)
        allowed = {"0", "2"} if not helped or latin else set()  # where files have no such names, a refusal is right
        if done.returncode or not codes or (set(codes) - allowed and " ".join(codes) != CODES):
            failures.append(f"{folder.name}: {codes} {said[-700:]}")
        elif " ".join(codes) == CODES:
            found[folder.name] = written(folder)
    for name, files in found.items():
        other = sorted(
            n for n in {*files, *found["C.UTF-8, helped"]} if files.get(n) != found["C.UTF-8, helped"].get(n)
        )
        if other:
            failures.append(f"{name}: other files than under C.UTF-8: {other[:5]}")
    with capsys.disabled():
        tried = f"{sum(counts.values())} tried: {counts['2']} refused, {counts['0']} worked"
        print(f"\nfuzz locales: {tried}, {len(failures)} locales with another outcome")
    assert not failures, "\n".join(failures)
    assert len(found["C.UTF-8, helped"]) > 8
