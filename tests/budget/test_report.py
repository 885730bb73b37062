"""The report: whole files, the answer first, nothing to load, nothing that is not in the study."""

import csv
import json
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from studymaking import ARMS, make

from vitwarm.budget import figures
from vitwarm.budget.efficiency import analyse, read_study
from vitwarm.budget.page import Code, Figure, Folded, Heading, Points, Table, Text, inline, to_html, to_markdown
from vitwarm.budget.plan import Arm, Published, PublishedValue
from vitwarm.budget.report import write_report
from vitwarm.budget.wording import headline
from vitwarm.cli import call
from vitwarm.errors import UserError

FILES = ["report.html", "report.md", "study.json", "cells.csv"]


def value(arm, main, seed):
    noise = np.random.default_rng([seed, round(100 * main), len(arm)]).normal(0, 0.002)
    return 0.6 + 0.1 * np.log(main / (1 if arm == "default" else 0.6)) + noise


def curve(arm, share, seed):
    return 0.5 * share


POINTS = (
    Published("some <authors>", 1.0, 72.0, "a paper & its page"),
    PublishedValue("the others", "default", "top1", 61.5, "their table"),
    PublishedValue("the others", "warmed", "top1", 77.25, "their table"),
    PublishedValue("the others", "warmed", "loss", 1.5, "their appendix"),
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    lost = [("warmed", 0.25, 1)]
    made = make(tmp_path_factory.mktemp("runs"), value, curve=curve, lost=lost, published=POINTS)
    return analyse(*made, "python tools/budget.py plan=tiny")


@pytest.fixture(scope="module")
def out(study, tmp_path_factory):
    return write_report(study, tmp_path_factory.mktemp("out") / "new")[0].parent


class Page(HTMLParser):
    """Tags, ids, and what the page would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.loads, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href") and not value.startswith("#"):
                self.loads.append(value)
        if tag not in ("meta", "br", "img", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(study, out):
    text = (out / "report.html").read_text()
    page = Page(text)
    assert not page.open and not page.loads and "script" not in page.tags and page.tags.count("svg") == 3
    assert len(page.ids) == len(set(page.ids))  # three pictures in one page
    assert "url(http" not in text and "@import" not in text
    assert "some &lt;authors&gt;" in text and "a paper &amp; its page" in text


def test_all_files_are_there_and_no_scratch(study, out):
    pictures = [f"{n}.{kind}" for n in ("curves", "efficiency", "needed") for kind in ("png", "svg")]
    assert sorted(p.name for p in out.iterdir()) == sorted(FILES + pictures)
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    for name in pictures:
        if name.endswith("svg"):
            assert "<dc:date>" not in (out / name).read_text()


def test_the_answer_comes_first_in_both_pages(study, out):
    markdown = (out / "report.md").read_text()
    assert markdown.split("\n\n")[1] == headline(study)
    assert (out / "report.html").read_text().index('<p class="lead">') < (out / "report.html").read_text().index(
        "<table>"
    )
    for must in ("python tools/budget.py plan=tiny", "torch 2.6", "a device", *(c.hash for c in study.cells)):
        assert must in markdown and must in (out / "report.html").read_text()


def test_what_others_reached_is_drawn_at_the_full_budget(study, out):
    for figure, full in ((figures.efficiency(study), 1.0), (figures.curves(study), 100.0)):
        top = figure.axes[0]
        drawn = {line.get_ydata()[0]: line for line in top.lines if line.get_markerfacecolor() == "none"}
        assert set(drawn) == {61.5, 77.25} and all(line.get_xdata()[0] == full for line in drawn.values())
        assert top.get_ylim()[0] <= 61.5 and top.get_ylim()[1] >= 77.25
        assert top.get_legend_handles_labels()[1].count("the others (published)") == 1
    for text in ((out / "report.md").read_text(), (out / "report.html").read_text()):
        assert "the others, warmed: 77.25 (their table)" in text and "their appendix" not in text  # another metric


def test_axes_stay_within_what_is_possible(tmp_path):
    """Accuracies near 0 and 100 %, whose intervals reach beyond both; a warm-up cannot be smaller than none."""
    spread = {"default": (0.01, 0.9, 0.99), "warmed": (0.02, 0.95, 1.0)}
    one = analyse(*make(tmp_path, lambda arm, main, seed: spread[arm][seed], curve=curve, published=POINTS))
    top, bottom = figures.efficiency(one).axes
    assert top.get_ylim() == (0, 100) and top.spines["bottom"].get_bounds() == (0.25, 1)
    assert {text.get_text() for text in bottom.get_yticklabels()} == {"warmed"} and not bottom.texts
    value_axis, difference = figures.curves(one).axes
    assert value_axis.get_ylim()[0] >= 0 and value_axis.get_ylim()[1] <= 100 and value_axis.get_xlim() == (0, 100)
    assert difference.get_xlim() == (0, 100) and figures.needed(one).axes[0].get_xlim()[0] == 0


def test_bars_of_arms_stand_beside_each_other(study):
    top = figures.efficiency(study).axes[0]
    bars = [{round(float(segment[0][0]), 6) for segment in lines.get_segments()} for lines in top.collections]
    assert len(bars) == 2 and not bars[0] & bars[1]


def test_many_arms_have_a_row_each_and_are_named_in_words(tmp_path):
    arms = {"default": ARMS["default"], **{f"a_{i}": Arm(f"a_{i}", "digits_proc") for i in range(3)}}
    arms["b"] = Arm("b", "digits_proc", label="k-Dyck, one percent")
    found = analyse(*make(tmp_path / "runs", value, curve=curve, budgets=(1.0,), arms=arms))
    axes = figures.curves(found).axes
    assert len(axes) == 2 * 4 and all(len(ax.collections) <= 2 for ax in axes)  # bands: the baseline's and an arm's
    names = [ax.get_title("left") for ax in axes[::2]]
    assert names == ["a 0, 3 seeds", "a 1, 3 seeds", "a 2, 3 seeds", "k-Dyck, one percent, 3 seeds"]
    assert len({ax.get_ylim() for ax in axes[1::2]}) == 1
    write_report(found, tmp_path / "out")
    assert "a_0" not in (tmp_path / "out/report.md").read_text().split("## Reproduce")[0]


def test_a_report_can_be_written_again_from_its_numbers(study, out, tmp_path, capsys):
    assert read_study(out / "study.json") == study
    call("budget", [f"plan={out}/study.json", "--report", f"out={tmp_path}/again"])
    assert {p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()} == {
        p.name: p.read_bytes() for p in out.iterdir()
    }
    assert capsys.readouterr().out.startswith(headline(study))
    with pytest.raises(UserError, match="write only --report"):
        call("budget", [f"plan={out}/study.json"])
    (tmp_path / "x.json").write_text('{"name": "x"}')
    with pytest.raises(UserError, match=r"x\.json: not the study\.json of a report"):
        call("budget", [f"plan={tmp_path}/x.json", "--report"])


def test_numbers_are_there_for_machines(study, out):
    content = json.loads((out / "study.json").read_text(), parse_constant=pytest.fail)
    assert content["arms"][1]["equivalence"]["share"] == study.arms[1].equivalence.share
    with open(out / "cells.csv", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == len(study.cells)
    for row, cell in zip(rows, study.cells, strict=True):
        assert row["hash"] == cell.hash and row["value"] == ("" if cell.value is None else str(cell.value))


def test_a_lost_cell_is_marked_and_has_no_number(study, out):
    markdown = (out / "report.md").read_text()
    section = markdown[markdown.index("## Every run") :].split("##")[1]
    row = next(line for line in section.splitlines() if line.startswith("| warmed"))
    assert row.split("|")[2].split("·")[1].strip() == "crashed"
    assert "warmed at 25 %, seed 1: crashed: the disk is full" in section


def test_a_second_report_replaces_the_first(study, out):
    first = {p.name: p.read_bytes() for p in out.iterdir()}
    files = write_report(study, out)
    assert files[0].name == "report.html" and sorted(f.name for f in files) == sorted(first)
    again = {p.name: p.read_bytes() for p in out.iterdir()}
    assert first == again


@pytest.mark.parametrize("changes", [{"seeds": (0,)}, {"budgets": (1.0,), "points": "crossing"}, {"lost": "all"}])
def test_a_study_with_little_in_it_is_still_a_page(tmp_path, changes):
    if changes.get("lost") == "all":
        changes = {"lost": [(a, b, s) for a in ARMS for b in (0.25, 0.5, 1.0) for s in (0, 1, 2)]}
    found = analyse(*make(tmp_path / "runs", value, curve=curve, **changes))
    assert not Page(write_report(found, tmp_path / "out")[0].read_text()).open
    assert "nan" not in (tmp_path / "out/report.md").read_text().lower().replace("finance", "")


def test_without_matplotlib_one_line_says_what_to_install(study, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="need matplotlib: pip install"):
        write_report(study, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_block_has_both_forms():
    blocks = [
        Text("a < b", "lead"),
        Heading("A head"),
        Points(["one", "two"], "warning"),
        Table(["arm", "n"], [["a|b", "77 %"]]),
        Figure("<svg></svg>", "x 1.svg", 'a "caption"'),
        Code("a\nb"),
        Folded("more", [Text("inside")]),
    ]
    html, markdown = to_html("T", blocks), to_markdown("T", blocks)
    assert not Page(html).open and "a &lt; b" in html and "77\u00a0%" in html and "&quot;caption&quot;" in html
    assert "](x%201.svg)" in markdown  # a target of a link has no blanks
    assert html.count("scrolls sideways") == 1  # of the table; the style shows it only where that is so
    assert "| a\\|b | 77 % |" in markdown and "- two" in markdown and "    b" in markdown and "### more" in markdown


def test_an_inlined_picture_keeps_its_names_to_itself():
    svg = (
        '<?xml?><svg width="9pt" height="8pt" viewBox="0 0 9 8"><metadata>x</metadata><g id="a" style="fill: #010203"/>'
    )
    svg += '<use xlink:href="#a" clip-path="url(#c)" width="2"/></svg>'
    assert "url(#a-task-1-c)" in inline(svg, "a task, 1", "#010203")
    found = inline(svg, "one", "#010203")
    assert found.startswith('<svg viewBox="0 0 9 8">') and "metadata" not in found and "currentColor" in found
    assert 'id="one-a"' in found and 'href="#one-a"' in found and "url(#one-c)" in found and 'width="2"' in found
