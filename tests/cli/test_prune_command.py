"""`halp-fx prune`: the folder that it leaves, what is kept of a search, and its words."""

from __future__ import annotations

import ast
import html
import re
from pathlib import Path

import pytest
import torch
import typer
from command_line import COUNTED, SMALL

import halp_fx
from halp_fx.cli.guarding import as_options, guarded, search_goes_on
from halp_fx.cli.models import make_model
from halp_fx.scoring.losses import REMEDY


def test_prune_leaves_a_folder(run, tmp_path):
    found = run("prune", *COUNTED, "--budget", "50%", "--data", "nets.py:batches", "--out", "small")
    assert found.code == 0
    assert "Budget met" in found.out
    names = {p.name for p in (tmp_path / "small").iterdir()}
    assert names == {"model.safetensors", "plan.json", "report.html", "report.json"}
    assert halp_fx.Plan.from_json((tmp_path / "small" / "plan.json").read_text())


def test_how_to_go_on_makes_the_same_network(run):
    asked = (*COUNTED, "--budget", "50%")
    assert '"pruned/model.safetensors", make)' in run("prune", *asked).out
    out = run("prune", *asked, "--set", "classes=2", "--set", "width=24").out
    assert '"pruned/model.safetensors", lambda: make(classes=2, width=24))' in out


def test_a_search_is_kept_and_efforts_are_named(run, tmp_path, monkeypatch):
    def pruned(out, *more):
        torch.manual_seed(0)  # Without --weights they are random.
        return run("prune", *COUNTED, "--budget", "50%", "--data", "nets.py:batches", "--out", out, "--json", *more)

    kept = ("--state", "search", "--effort", "fast")
    first = pruned("small", *kept)
    monkeypatch.setattr("halp_fx.pruning.session.scored", None)  # Nothing is scored again.
    again = pruned("again", *kept)
    assert first.code == again.code == 0
    assert (tmp_path / "small" / "plan.json").read_text() == (tmp_path / "again" / "plan.json").read_text()
    other = pruned("other", "--state", "search")
    assert other.code == 1
    assert "effort = 'fast', and this call has effort = 'normal'" in " ".join(other.err.split())
    assert "--effort much is not one of" in pruned("other", "--effort", "much").err


def test_the_network_is_healed(run, monkeypatch):
    monkeypatch.setattr("halp_fx.pruning.session.STEPS", 3)
    asked = ("prune", *COUNTED, "--budget", "50%", "--heal", "--json")
    found = run(*asked, "--data", "nets.py:batches")
    assert found.code == 0
    assert any("healed" in note and "3 steps" in note for note in found.json["notes"])
    bare = run(*asked)
    assert bare.code == 1
    assert "--heal trains the network on data: pass --data" in " ".join(bare.err.split())


@pytest.mark.parametrize("columns", [50, 60, 300])
def test_how_to_go_on_is_python_however_narrow_the_terminal(run, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    out = run("prune", *COUNTED, "--budget", "50%", "--set", "classes=2", "--set", "width=24").out
    (code,) = re.findall(r"^fine-tune: (small = .*?)\n +#", out, re.DOTALL | re.MULTILINE)
    assert ast.dump(ast.parse(code)) == ast.dump(
        ast.parse('small = halp_fx.load("pruned/model.safetensors", lambda: make(classes=2, width=24))')
    )


def test_what_a_report_advises_is_said_in_options(run):
    said = run("prune", *COUNTED, "--budget", "50%").out
    assert "report.html says which, and why" in said
    assert "pass --data for widths that fit the network (and --loss, if" in said
    assert "summary()" not in said


def test_reports_that_a_command_made_name_its_options(run):
    """The page is read by whoever typed the command."""
    given = ("prune", "nets.py:bare", *SMALL[1:], "--cost", "macs", "--budget", "50%", "--out", "small")
    said = run(*given).out
    page, shown = Path("small/report.html").read_text(), run("report", "small").out
    for words in (" ".join(said.split()), html.unescape(page), " ".join(shown.split())):
        assert "pass --data for widths that fit the network (and --loss, if" in words
        assert "--compensate does it with images" in words
        assert not re.search(r"\b\w+=(True|False|None)\b|loss_fn|min_keep|pass data", words)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("What may help: branches=True, which may", "What may help: --branches, which may"),
        ("the next steps of the groups (round_to, 32 widths", "the next steps of the groups (--round-to, 32 widths"),
        ("with one thread (torch.set_num_threads(1)) the", "with one thread (--threads 1) the"),
        ("on a GPU; runtime='eager' needs neither", "on a GPU; --runtime eager needs neither"),
        ("by limits={name: (2, 1.0)} or min_keep", "by --min-keep"),
        (
            "train the last layers first, or pass importance='magnitude'",
            "train the last layers first, or leave --data out",
        ),
        (REMEDY, "call halp_fx.prune in Python, with loss="),
        ("compare, x: pass loss=lambda model, batch: …", "compare, x: call halp_fx.prune in Python, with loss="),
        ("More steps (steps), a", "More steps (--steps), a"),
    ],
)
def test_words_of_the_library_in_those_of_the_command_line(said, words):
    assert as_options(said) == words


def test_prune_in_json(run):
    found = run("prune", *COUNTED, "--budget", "60%", "--json")
    assert found.json["met"] is True
    assert "pass --data for widths" in " ".join(found.json["notes"])
    assert found.json["measured"] <= found.json["budget"] < found.json["dense"]
    assert "Budget met" in found.err


def test_several_budgets(run):
    found = run("prune", *COUNTED, "-b", "macs=60%", "-b", "params=50%")
    assert found.code == 0
    assert "params" in found.out
    assert run("prune", *COUNTED, "-b", "60%", "-b", "params=50%").code == 1


def test_weights_come_back(run, tmp_path):
    """The network of a folder, made anew, computes what the pruned one did."""
    run("prune", *COUNTED, "--budget", "50%", "--out", "small")
    sizes = run("compare", *SMALL, "small", "--seconds", 0, "--json").json["networks"]
    assert [n["name"] for n in sizes] == ["dense", "small"]
    assert sizes[1]["parameters"] < sizes[0]["parameters"]


def test_the_checkpoint_is_the_network(run, tmp_path):
    run("prune", *COUNTED, "--budget", "50%", "--out", "small")
    dense = make_model("nets.py:make")
    small = halp_fx.load(tmp_path / "small" / "model.safetensors", dense)
    assert small[0].out_channels < dense[0].out_channels
    assert small.halp == halp_fx.Report.from_json((tmp_path / "small" / "report.json").read_text())


def test_ctrl_c_says_what_was_saved(run, tmp_path, monkeypatch):
    wrote = halp_fx.reporting.report.Report.to_html
    folders = []

    def interrupted(report, path):
        folders.append(path)
        if len(folders) == 2:
            raise KeyboardInterrupt
        return wrote(report, path)

    monkeypatch.setattr(halp_fx.reporting.report.Report, "to_html", interrupted)
    found = run("sweep", *COUNTED, "--budgets", "80%,50%", "--out", "curve")
    assert found.code == 130
    assert "interrupted\nsaved: curve/80/plan.json, curve/80/model.safetensors" in found.err
    assert "curve/sweep.csv" in found.err
    assert "--state DIR would keep the search" in found.err
    assert len((tmp_path / "curve" / "sweep.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("cost", "state", "said"),
    [
        ("latency", None, "layers that were timed are kept in the latency table: run the same command again"),
        ("macs", None, "--state DIR would keep the search"),
        ("macs", Path("kept"), "the search is kept in kept: run the same command again"),
    ],
)
def test_how_to_go_on_is_said_by_what_is_kept(cost, state, said, capsys):
    @guarded()
    def command():
        search_goes_on(cost, state)
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit):
        command()
    assert capsys.readouterr().err.splitlines()[-1] == said
