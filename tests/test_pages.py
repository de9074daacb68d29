"""What README and pages say is so: their Python runs, their links lead somewhere, and no public name is missing."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from doc_blocks import blocks, run

import halp_fx
from halp_fx.latency import Timing
from halp_fx.latency.interleaving import NetworkTiming

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.fixture
def machine(monkeypatch):
    """A machine that takes a time in proportion to the numbers a layer reads, and to the parameters of a network: pages
    show what is run, not how long it takes on the machine that runs the tests."""

    def layer(call, device, effort):
        arguments = [x for x in (*call.args, *call.keywords.values()) if isinstance(x, torch.Tensor)]
        return Timing(1e-6 * (1000 + sum(x.numel() for x in arguments)), 0.0, 9)

    def networks(models, inputs, **_):
        counts = [1 + sum(p.numel() for p in model.parameters()) for model in models]
        return tuple(NetworkTiming(10 * n / counts[0], 0.01, 9, share=n / counts[0]) for n in counts)

    monkeypatch.setattr("halp_fx.latency.sampler.timer_for", lambda runtime: layer)
    for place in ("latency.measured", "latency.benchmarking", "exporting.exporter", "exporting.quantizing"):
        monkeypatch.setattr(f"halp_fx.{place}.interleaved", networks)


@pytest.mark.parametrize("page", [p for p in PAGES if list(blocks(p))], ids=lambda p: str(p.relative_to(ROOT)))
def test_blocks_run(page, machine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for reason in run(page):
        warnings.warn(f"not run: {reason}", stacklevel=1)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_code_fits_beside_the_list_of_pages(page):
    """The site shows so many columns without scrolling."""
    wide = []
    for block in re.findall(r"^```(?:python|bash)$(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
        wide += [line for line in block.splitlines() if len(line) > 97]
    assert not wide


def test_a_block_that_fails_is_told_by_its_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\na = 1\n```\n\ntext\n\n```python\nassert a == 2\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError) as failed:
        run(page)
    assert failed.traceback[-1].lineno + 1 == 10


def test_comments_before_blocks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- before: a = 1 -->\n```python\nassert a == 1\n```\n\n"
        "<!-- not run: needs a GPU -->\n```python\n1 / 0\n```\n\n"
        "<!-- needs: surely_not_installed -->\n```python\n1 / 0\n```\n",
        encoding="utf-8",
    )
    assert run(page) == ["page.md:8: needs a GPU", "page.md:13: not installed: surely_not_installed"]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = target.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        found = page.parent / path if path else page
        assert found.exists(), f"{page.name} links to {target}"
        if heading and found.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}, target


@pytest.mark.parametrize("package", ["halp_fx", "latency", "solver", "rules", "kernels"])
def test_every_public_name_is_in_the_reference(package):
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md"))
    public = halp_fx.__all__ if package == "halp_fx" else getattr(halp_fx, package).__all__
    names = [name for name in public if not name.endswith("Error")]  # Errors come as a whole module.
    entry = r":: (halp_fx\.([\w.]+\.)?)?{}(\(\))?$"
    missing = [name for name in names if not re.search(entry.format(name), pages, re.MULTILINE)]
    assert not missing, f"docs/reference has no entry for {', '.join(missing)}"
