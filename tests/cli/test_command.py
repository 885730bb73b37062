"""The command `vitwarm`: its subcommands, their help, what they refuse, and what they do without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import vitwarm
from vitwarm.cli import SUBCOMMANDS, call
from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.recipe import list_recipes, load_recipe, read_frozen, read_yaml, recipe_hash, recipe_text

ROOT = Path(__file__).resolve().parents[2]
TOOLS = {"inspect": "inspect_trunk.py", "make-shards": "make_shards.py"}

WATCHED = """
import contextlib, io, json, sys
from vitwarm.cli import main
sys.argv = ["/usr/bin/vitwarm", *json.loads(sys.argv[1])]
out, err, code = io.StringIO(), io.StringIO(), 0
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
        main()
    except SystemExit as end:
        code = end.code
heavy = [name for name in ("torch", "timm", "accelerate") if name in sys.modules]
print(json.dumps([code, out.getvalue(), err.getvalue(), heavy]))
"""


def watched(*words):
    """(exit code, stdout, stderr, heavy modules that were imported) of the command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, json.dumps(words)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_has_help_and_a_version(name, capsys):
    for asked in ("--help", "-h"):
        call(name, ["recipe=none-such", asked])
        said = capsys.readouterr().out
        assert said.startswith(f"usage: vitwarm {name} ")
    call(name, ["--version"])
    assert capsys.readouterr().out == f"vitwarm {vitwarm.__version__}\n"
    call(name, ["--help"], f"python -m vitwarm {name}")
    assert capsys.readouterr().out.startswith(f"usage: python -m vitwarm {name} ")


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_refuses_a_word_that_it_cannot_read(name):
    with pytest.raises(UserError) as caught:
        call(name, ["--no-such-flag"])
    assert str(caught.value) == f"no flag --no-such-flag; see vitwarm {name} --help"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--help"], 0, "usage: vitwarm SUBCOMMAND"),
        (["--version"], 0, f"vitwarm {vitwarm.__version__}\n"),
        (["train", "--help"], 0, "  train.lr: number = 0.001 in (0, inf)\n"),
        (["inspect", "--help"], 0, "Rules: "),
        (["compose", "--help"], 0, "Groups: trunk, attention, mlp, norm, norm1, norm2, embedding, head;"),
        (["recipes", "list"], 0, "digits_proc "),
        (["train", "recipe=list"], 0, "digits_proc "),
        (["budget", "plan=list"], 0, "digits "),
        (["recipes", "show", "digits_proc"], 0, "\nname: digits_proc\n"),
        (["show", "rule=dyck", "k=4"], 0, "sequence 0: "),
        (["tarin"], 2, "vitwarm: error: no subcommand 'tarin'; did you mean train?; see vitwarm --help\n"),
        (["train", "recipe=digits_porc"], 2, "did you mean digits_proc?"),
        (["train", "recipe=digits_proc", "train.lrr=1"], 2, "did you mean train.lr?"),
        (["train", "digits_proc"], 2, "cannot use 'digits_proc': write NAME=VALUE; see vitwarm train --help"),
        (["validate", "exprt=x"], 2, "no option exprt=; did you mean export?"),
        (["plan", "recipe=digits_proc", "gpus=0.5"], 2, "gpus is a whole number"),
        (["ensemble", "recipe=haystack_dyck", "seeds=0-1", "seed=1"], 2, "seed= is for one run"),
        (["budget", "plan=digitz"], 2, "did you mean digits?"),
        (["generate", "export=x"], 2, 'no prompt="TEXT"'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_lists_and_mistakes_do_without_torch(words, code, says):
    found, out, err, heavy = watched(*words)
    assert (found, heavy) == (code, [])
    assert says in (err if code else out) and not (out if code else err)
    if code:
        assert err.startswith("vitwarm: error: ") and err.count("\n") == 1


def test_the_command_alone_prints_its_help():
    code, out, err, _ = watched()
    assert code == 2 and not out and all(f"\n  {name} " in err for name in SUBCOMMANDS)


@pytest.mark.parametrize("name", ["train", "make-shards", "inspect"])
def test_each_way_to_call_is_named_in_the_help(name):
    file = ROOT / "tools" / TOOLS.get(name, f"{name}.py")
    for words, program in (
        ([str(file)], f"python {file}"),
        (["-m", "vitwarm", name], f"python -m vitwarm {name}"),
    ):
        done = subprocess.run([sys.executable, *words, "--help"], capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout.startswith(f"usage: {program} ")


# recipes


def test_a_shown_recipe_is_its_header_and_every_key(tmp_path, capsys):
    call("recipes", ["show", "vit_b_proc1pct"])
    said = capsys.readouterr().out
    path = next(path for name, path, _ in list_recipes() if name == "vit_b_proc1pct")
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert header and said.splitlines()[: len(header)] == header
    (tmp_path / "shown.yaml").write_text(said)
    assert recipe_hash(read_frozen(tmp_path / "shown.yaml")) == recipe_hash(load_recipe(["recipe=vit_b_proc1pct"]))
    assert read_yaml(tmp_path / "shown.yaml").keys() == Config.__dataclass_fields__.keys()


def test_a_shown_variant_has_its_own_comment(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("""# The file.\n\nbase: digits_proc\nvariants:\n  # The first.\n  a:
    seed: 1\n\n  # The second,\n  # in two lines.\n  b:\n    seed: 2\n""")
    for variant, comment in (("a", "# The first."), ("b", "# The second,\n# in two lines.")):
        call("recipes", ["show", f"{tmp_path / 'mine.yaml'}:{variant}"])
        assert capsys.readouterr().out.startswith(f"{comment}\n#\n# A resolved vitwarm recipe")


def test_a_copied_recipe_is_the_same_experiment(tmp_path, capsys):
    """What it inherits from is found from elsewhere."""
    for name, path, _ in list_recipes()[::7]:
        call("recipes", ["copy", name, str(tmp_path / "mine" / f"my_{name}.yaml")])
        copy = tmp_path / "mine" / f"my_{name}.yaml"
        assert copy.read_text() == recipe_text(name) and (copy.read_bytes() == path.read_bytes()) == (name == path.stem)
        assert recipe_hash(load_recipe([f"recipe={copy}"])) == recipe_hash(load_recipe([f"recipe={name}"])), name


def test_copies_overwrite_nothing(tmp_path):
    (tmp_path / "there.yaml").write_text("seed: 1\n")
    for words, says in (
        (["copy", "digits_proc", str(tmp_path / "there.yaml")], "exists"),
        (["copy", "digits_porc", str(tmp_path / "new.yaml")], "did you mean digits_proc"),
        (["copy", "digits_proc", str(tmp_path / "new.txt")], "ends in .yaml"),
        (["copy", "digits_default", str(tmp_path / "digits_proc.yaml")], "choose another name"),
        (["copy", "sorting_default", str(tmp_path / "haystack_set.yaml")], "choose another name"),
        (["copy", "digits_proc"], "write: recipes copy NAME FILE.yaml"),
        (["show"], "write: recipes show NAME"),
        (["list", "digits_proc"], "takes nothing more"),
    ):
        with pytest.raises(UserError, match=says):
            call("recipes", words)
    assert [p.name for p in tmp_path.iterdir()] == ["there.yaml"]
    assert (tmp_path / "there.yaml").read_text() == "seed: 1\n"
