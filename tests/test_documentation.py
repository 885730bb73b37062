"""README.md and docs/: links, commands, navigation, and what the package index and the site make of them."""

import importlib
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

import vitwarm
from vitwarm.cli import SUBCOMMANDS
from vitwarm.cli.words import parse
from vitwarm.recipe import list_recipes, load_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
CODE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^( *)```bash\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def links(text: str) -> list[str]:
    """Targets of links and pictures, outside of code."""
    text = re.sub(r"`[^`]*`", "", CODE.sub("", text))
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of the headings: the second of one name gets -1."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ (.*)$", CODE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_files_of_a_page_are_there(page):
    text = page.read_text(encoding="utf-8")
    for link in links(text):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"
    for name in re.findall(r"(?<![\w/.])((?:docs|recipes|tests|tools|vitwarm)/[\w./-]+\.\w+)", text):
        assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_runs_are_called_as_their_recipes_name_them():
    """`runs/RECIPE-seedN`: N is the seed of the recipe, which is not 0 everywhere."""
    files = [*PAGES, *(ROOT / "vitwarm").rglob("*.py"), *(ROOT / "recipes").rglob("*.yaml")]
    runs = re.compile(r"\bruns/(\w+)-seed(\d+)\b")
    found = {run for file in files if "results" not in file.parts for run in runs.findall(file.read_text("utf-8"))}
    shipped = {name for name, *_ in list_recipes()} & {name for name, _ in found}
    assert len(shipped) > 5
    assert {(name, str(load_recipe([f"recipe={name}"]).seed)) for name in shipped} == {
        (name, seed) for name, seed in found if name in shipped
    }


def commands() -> list[tuple[str, list[str]]]:
    """(page, words after `vitwarm`) of every command that a page shows, but for measurements, which are history."""
    found = []
    for page in (page for page in PAGES if "results" not in page.parts):
        for block in SHELL.findall(page.read_text(encoding="utf-8")):
            for line in re.sub(r" *\\\n *", " ", block[1]).splitlines():
                call = re.search(r"(?:^|-m )vitwarm (?=[a-z])(.*)", line.strip())
                if call:
                    found.append((name_of(page), shlex.split(call[1], comments=True)))
    return found


@pytest.mark.parametrize(
    ("page", "words"), [pytest.param(page, words, id=f"{page} {' '.join(words)[:60]}") for page, words in commands()]
)
def test_commands_of_the_pages_are_understood(page, words):
    """Subcommand, options, recipe and keys; the files that they name need not be there."""
    name, *rest = (word for word in words if word != "...")
    assert name in SUBCOMMANDS
    if "--help" in rest or "my/study.yaml" in " ".join(rest):  # one's own file
        return
    options = parse(importlib.import_module(f"vitwarm.cli.{name.replace('-', '_')}").Options, rest, f"vitwarm {name}")
    if name in ("train", "ensemble", "plan"):
        load_recipe(options.recipe_words)


def test_there_are_commands_to_look_at():
    assert len(commands()) > 40 and {"README.md", "docs/running.md"} <= {page for page, _ in commands()}


@pytest.mark.filterwarnings("ignore")  # of the other libraries
def test_the_python_of_readme_runs(tmp_path, monkeypatch, capsys):
    """As it stands, with a smaller model and fewer steps."""
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL))
    for long, short in {
        "steps=15_000": 'steps=2, global_batch=2, lr_warmup="1 steps", val_rows=2, progress=False',
        "num_classes=10": "num_classes=10, depth=3, embed_dim=192, num_heads=3",
    }.items():
        assert long in code
        code = code.replace(long, short)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert "dyck: 2 steps" in capsys.readouterr().out
    again = names["timm"].create_model("local-dir:warmed", pretrained=True)
    ours, theirs = (model.blocks[2].mlp.fc1.weight for model in (names["model"], again))
    assert ours.equal(theirs) and again.num_classes == 10


def test_the_description_on_the_package_index_has_absolute_links_alone(monkeypatch):
    monkeypatch.chdir(ROOT)
    metadata = pytest.importorskip("hatchling.metadata.core")
    pytest.importorskip("hatch_fancy_pypi_readme")
    manager = importlib.import_module("hatchling.plugin.manager").PluginManager()
    described = metadata.ProjectMetadata(str(ROOT), manager).core.readme
    written = links((ROOT / "README.md").read_text(encoding="utf-8"))
    address = site()["extra"]["repository"]
    raw = address.replace("github.com", "raw.githubusercontent.com")
    prefix = {True: f"{raw}/main/", False: f"{address}/blob/main/"}
    expected = [
        link if link.startswith(("https:", "#")) else prefix[link.endswith((".svg", ".png"))] + link for link in written
    ]
    assert links(described) == expected and any("idea.svg" in link for link in expected)


# The site


def site() -> dict:
    """.mkdocs.yml without its Python tags."""
    text = (ROOT / ".mkdocs.yml").read_text(encoding="utf-8")
    return yaml.safe_load(re.sub(r"!!python\S+", "", text))


def leaves(node) -> list[str]:
    if isinstance(node, str):
        return [node]
    return [leaf for child in (node.values() if isinstance(node, dict) else node) for leaf in leaves(child)]


def test_the_navigation_lists_every_page_once_in_four_groups():
    nav = site()["nav"]
    assert [next(iter(group)) for group in nav] == ["Start", "Guides", "Reference", "Evidence"]
    pages = [page for page in leaves(nav) if page.endswith(".md")]
    notebooks = {f"{site()['extra']['repository']}/blob/main/{name_of(p)}" for p in ROOT.glob("docs/notebooks/*.ipynb")}
    assert set(leaves(nav)) - set(pages) == notebooks
    assert sorted(pages) == sorted(
        ["index.md", *(str(p.relative_to(ROOT / "docs")) for p in PAGES if p.name != "README.md")]
    )


def test_readme_links_every_page_of_the_first_three_groups():
    wanted = {page for group in site()["nav"][:3] for page in leaves(group) if page.endswith(".md")} - {"index.md"}
    linked = set(re.findall(r"\]\(docs/([\w/]+\.md)\)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert wanted | {"evidence.md"} <= linked


def test_evidence_links_every_measurement():
    text = (ROOT / "docs/evidence.md").read_text(encoding="utf-8")
    assert {page.name for page in (ROOT / "docs/results").glob("*.md")} <= set(
        re.findall(r"\]\(results/(\w+\.md)", text)
    )


def test_the_page_of_functions_has_all_that_is_public():
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    shown = [
        getattr(importlib.import_module(path.rpartition(".")[0]), path.rpartition(".")[2])
        for path in re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    ]
    for name in vitwarm.__all__:
        assert name == "__version__" or getattr(vitwarm, name) in shown, name


def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-q",
        "-f",
        str(ROOT / ".mkdocs.yml"),
        "-d",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in PAGES:
        address = page.relative_to(ROOT / "docs").with_suffix("") if page.name != "README.md" else ""
        assert (tmp_path / address / "index.html").is_file()
    first = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'src="images/idea.svg"' in first and (tmp_path / "images/idea.svg").is_file()
    assert 'href="recipes/"' in first and 'href="../recipes/' not in (tmp_path / "recipes/index.html").read_text(
        encoding="utf-8"
    )
    assert "Warm up the trunk of a model" in (tmp_path / "api/index.html").read_text(encoding="utf-8")
