"""The report as a page: what it says, that it needs nothing else, and that a browser shows it."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from test_prune import IMAGE, small_resnet

import halp_fx
from halp_fx.pruning.budgets import amount
from halp_fx.reporting.charts import MOST_ARCS, arcs, staircase
from halp_fx.reporting.details import GroupReport, ModuleChange, WidthCurve
from halp_fx.reporting.page import fragment, page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def report():
    """Of a small ResNet, in three steps."""
    torch.manual_seed(0)
    data = [(torch.randn(4, *IMAGE.shape[1:]), torch.arange(4)) for _ in range(2)]
    options = {"latency": "macs", "steps": 3, "score_fn": lambda model: 0.75, "progress": False}
    return halp_fx.prune(small_resnet(), 0.5, IMAGE, data=data, **options).halp


@pytest.fixture
def timed(report):
    """The same as if it had been timed, with everything that a page may show."""
    notes = ("the machine was busy <b>& loud</b>",)
    return replace(
        report, unit="ms", scatter=0.02, notes=notes, branches={"layer1.1": "dropped", "layer2.0": "why not"}
    )


class Page(HTMLParser):
    """Whether tags are closed in the order in which they were opened, the text, and what is referred to."""

    EMPTY = ("meta", "link", "br", "line", "circle", "path", "polyline")

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.links = [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("href", "src", "srcset", "action") and not v.startswith("data:,")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_a_page_makes_its_folder(report, tmp_path):
    path = report.to_html(str(tmp_path / "not" / "there" / "report.html"))
    assert path.read_text(encoding="utf-8") == page(report)


def test_scores_kept_are_shown_where_widths_follow_them(report):
    assert report.saliency == "fisher"
    assert "Scores kept are those of the channels that stay" in Page(page(report)).text
    blind = Page(page(replace(report, saliency="magnitude"))).text
    assert "solver's gap" in blind
    assert "cores kept" not in blind


def test_the_page_says_what_was_done(report):
    found = Page(page(report))
    assert report.verdict in found.text
    assert not found.links
    assert "url(" not in page(report)
    assert "@import" not in page(report)
    for group in report.groups:
        assert f"{group.kept} of {group.size} channels" in found.text
    for name, why in report.frozen.items():
        assert f"{name} {why}" in found.text
    for module in report.modules:
        assert (
            f"{module.name} {module.before} {'as before' if module.after == module.before else module.after}"
            in found.text
        )
    assert "PyTorch" in found.text
    assert len(page(report)) < 100_000


def test_a_timed_report_with_branches(timed):
    text = Page(page(timed)).text
    assert "the machine was busy <b>& loud</b>" in text
    assert "branch layer1.1 dropped" in text
    assert "branch layer2.0 why not" in text
    assert 'title="half of all calls lie within this"' in page(timed)


def test_names_are_text(report):
    evil = "<script>alert(1)</script>"
    group = replace(report.groups[0], name=evil, layers=(evil, evil + "2"))
    made = page(replace(report, groups=(group, *report.groups[1:]), frozen={evil: evil}, flows=((evil, evil),)))
    assert "<script>alert" not in made
    assert Page(made).text.count(evil) >= 3


def test_a_network_that_was_left_as_it_is():
    report = halp_fx.prune(small_resnet(), 1.0, IMAGE, latency="macs", progress=False).halp
    assert "Nothing removed" in Page(page(report)).text
    assert f"All {len(report.modules)} modules, as before" in Page(page(report)).text, "and they are folded"
    assert "Nothing removed" in fragment(report)


def test_a_large_network_stays_below_a_megabyte(report):
    widths = tuple(range(8, 273, 8))
    curve = WidthCurve(widths, tuple(w * 1.234567890123e-3 for w in widths))
    groups = tuple(GroupReport(f"stage{i}.block.conv{i}", 272, 136, (), (f"l{i}",), curve, curve) for i in range(600))
    flows = tuple((a.name, b.name) for i, a in enumerate(groups) for b in groups[i + 1 : i + 20])
    modules = tuple(
        ModuleChange(g.name, "Conv2d(272, 272, 3x3)", "Conv2d(136, 136, 3x3)", (9, 3), (9e6, 3e6)) for g in groups
    )
    made = page(replace(report, groups=groups, flows=flows, modules=modules))
    assert len(made.encode()) < 1_000_000
    assert "more are in the JSON report" in made
    assert f"{len(set(flows)) - MOST_ARCS} arcs between distant rows are not drawn" in Page(made).text


def test_drawings(report):
    group = next(g for g in report.groups if 0 < g.kept < g.size)
    drawn = staircase(group, "MACs")
    assert drawn.count("<circle") == 2
    (points,) = re.findall(r'class="line" points="([^"]*)"', drawn)
    at = [tuple(map(float, p.split(","))) for p in points.split()]
    assert len(at) == len(group.cost.widths)
    assert [x for x, _ in at] == sorted(x for x, _ in at)
    # Costs rise with the width, and SVG counts from the top.
    assert [y for _, y in at] == sorted((y for _, y in at), reverse=True)
    assert staircase(replace(group, cost=WidthCurve(), lost=WidthCurve()), "MACs") == ""
    widths = tuple(range(8, 129, 8))
    curve = WidthCurve(widths, tuple(map(float, widths)))
    for kept, ends in ((64, ["8", "128"]), (120, ["8"]), (16, ["128"]), (128, ["8", "128"])):
        drawn = staircase(GroupReport("g", 128, kept, (), ("l",), curve), "MACs")
        assert re.findall(r'<text x="[\d.]+" y="170" text-anchor="\w+">(\d+)<', drawn) == ends
        assert drawn.count(f">{kept}</text>") == 1
    assert arcs(("a", "b", "c"), (("a", "b"), ("b", "a"), ("a", "gone"))).count("<path") == 2


def test_costs_in_a_report_are_those_of_the_network(report):
    """Every part against what counts it directly."""
    model = small_resnet()
    coupling = halp_fx.channel_groups(model, IMAGE)
    kept = {g.name: g.kept for g in report.groups}
    cost = halp_fx.MacsCost()
    widths = {**coupling.widths(), **kept}
    assert report.macs == (cost.total(coupling), cost.total(coupling, widths))
    assert report.macs == (report.dense, report.measured)
    assert sum(c.cost[0] for c in report.costs) == report.dense
    assert sum(c.cost[1] for c in report.costs) == report.measured
    assert sum(m.macs[1] for m in report.modules) == report.measured
    assert (
        sum(m.parameters[0] for m in report.modules),
        sum(m.parameters[1] for m in report.modules),
    ) == report.parameters
    memory = halp_fx.MemoryCost()
    assert report.memory == (memory.total(coupling), memory.total(coupling, widths))
    for group in report.groups:
        rest = cost.total(coupling, widths) - group.cost.values[group.cost.widths.index(group.kept)]
        for width, value in list(zip(group.cost.widths, group.cost.values, strict=True))[:: len(group.cost.widths) - 1]:
            assert value + rest == pytest.approx(cost.total(coupling, {**widths, group.name: width}))
        assert group.lost.values[-1] <= group.lost.values[0]
    assert len(report.steps) == 2
    assert report.steps[0].parameters > report.steps[1].parameters > report.parameters[1]


def test_flows_are_the_layers_between_groups():
    model = torch.nn.Sequential(*(torch.nn.Conv2d(8, 8, 1) for _ in range(3)))
    report = halp_fx.prune(model, 0.6, torch.rand(1, 8, 4, 4), latency="macs", progress=False).halp
    assert report.flows == (("0", "1"),)
    assert [g.layers for g in report.groups] == [("0",), ("1",)]


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (4.0156, "ms", "4.02 ms"),
        (9.3, "ms", "9.30 ms"),
        (104.2, "ms", "104 ms"),
        (1500, "ms", "1.50 s"),
        (1.82e9, "MACs", "1.82 G MACs"),
        (25.6e6, "", "25.6 M"),
        (12.3e6, "bytes", "12.3 MB"),
        (0, "ms", "0 ms"),
        (512, "", "512"),
    ],
)
def test_amounts(value, unit, words):
    assert amount(value, unit) == words


def test_the_first_screen(report):
    text = str(report)
    assert text.startswith(report.verdict)
    assert "MACs" in text
    assert "axes" not in text
    assert "class kept" not in text
    assert max(map(len, text.splitlines())) <= 120
    missed = replace(report, measured=report.budget * 1.1)
    assert missed.verdict.startswith("Budget missed by 10.0%")
    assert "not to be trusted" in replace(report, busy="all day").verdict
    assert "score from 0.75 to 0.75" in report.verdict


def test_a_notebook_shows_the_verdict(report):
    assert report.verdict in report._repr_html_()
    Page(report._repr_html_())


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="the page is looked at with playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with api.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1200])
def test_a_browser_shows_it(browser, timed, tmp_path, width, scheme):
    path = timed.to_html(tmp_path / "report.html")
    shown = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said, asked = [], []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(path.as_uri())
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # Nothing reaches over the edge but what scrolls in a frame of its own.
    wide = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll') && !e.closest('svg')
              && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert shown.evaluate(wide) == []
    paper = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    bright = sum(map(int, re.findall(r"\d+", paper)[:3])) > 3 * 128
    assert bright == (scheme == "light")
    shown.close()


@pytest.mark.parametrize(("width", "media"), [(380, "screen"), (1200, "screen"), (718, "print")])
def test_long_amounts_have_room(browser, report, tmp_path, width, media):
    costs = tuple(replace(c, cost=(301e6, 169e6)) for c in report.costs)
    large = replace(report, costs=costs, dense=188e6, budget=149e6, measured=148e6)
    shown = browser.new_page(viewport={"width": width, "height": 900})
    shown.emulate_media(media=media)
    shown.goto(large.to_html(tmp_path / "report.html").as_uri())
    assert "301 M MACs → 169 M MACs" in shown.locator(".pairs .value").first.text_content()
    over = "[...document.querySelectorAll('.value, .of')].filter(e => e.scrollWidth > e.clientWidth).length"
    assert shown.evaluate(over) == 0
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shown.close()


def test_tables_are_sorted_by_a_click(browser, timed, tmp_path):
    shown = browser.new_page()
    shown.goto(timed.to_html(tmp_path / "report.html").as_uri())
    column = "[...document.querySelectorAll('#modules tbody tr')].map(r => +r.cells[3].dataset.v)"
    names = "[...document.querySelectorAll('#modules tbody tr')].map(r => r.cells[0].textContent)"
    before = shown.evaluate(column)
    head = shown.locator("#modules th button").nth(3)
    head.click()
    assert shown.evaluate(column) == sorted(before, reverse=True)
    assert shown.locator("#modules th").nth(3).get_attribute("aria-sort") == "descending"
    head.click()
    assert shown.evaluate(column) == sorted(before)
    shown.locator("#modules th button").first.focus()
    shown.keyboard.press("Enter")
    shown.keyboard.press("Enter")
    assert shown.evaluate(names) == sorted(
        shown.evaluate(names), key=lambda n: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", n)]
    )
    shown.close()


def natural(name):
    """Numbers in a name count as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def test_it_prints(browser, timed, tmp_path):
    shown = browser.new_page()
    shown.goto(timed.to_html(tmp_path / "report.html").as_uri())
    assert shown.pdf(format="A4").startswith(b"%PDF")
    assert shown.evaluate("[...document.querySelectorAll('details')].every(d => d.open)")
    shown.close()
