"""What a newcomer types: homes in paths, names that are there twice, functions that fail, one dash for help."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from command_line import SMALL
from typer.testing import CliRunner

import halp_fx
from halp_fx.cli.app import app
from halp_fx.cli.models import make_model

COUNTED = (*SMALL, "--cost", "macs")
TABLE_COMMANDS = ("build", "request", "measure", "show", "merge", "check")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The user's home, beside the working directory. A shell does not expand it after an equals sign."""
    place = tmp_path / "home"
    place.mkdir()
    monkeypatch.setenv("HOME", str(place))
    return place


def test_a_home_in_an_option_is_the_users(run, tmp_path, home):
    found = run("prune", *COUNTED, "--budget", "50%", "--out=~/small", "--state=~/kept")
    assert found.code == 0
    names = {p.name for p in (home / "small").iterdir()}
    assert names == {"model.safetensors", "plan.json", "report.html", "report.json"}
    assert (home / "kept").is_dir()
    assert not (tmp_path / "~").exists()
    assert run("report", "~/small", "--html=~/pages/page.html").code == 0
    assert (home / "pages" / "page.html").exists()


def test_a_home_in_data_is_the_users(run, home):
    (home / "photos").mkdir()
    found = run("prune", *COUNTED, "--budget", "50%", "--data=~/photos")
    assert f"--data {home / 'photos'}: no images there" in found.err


def test_what_was_there_before_is_not_said_to_be_written(run, tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "notes.txt").write_text("mine")
    found = run("prune", *COUNTED, "--budget", "50%", "--out", "small", "--export", "pt2")
    assert found.code == 0
    assert "wrote small: model.pt2, model.safetensors, plan.json, report.html, report.json\n" in found.out


def test_networks_of_one_name_have_a_row_each(run):
    found = run("bench", SMALL[0], *SMALL, "--seconds", 0, "--json")
    assert [n["name"] for n in found.json["networks"]] == ["nets.py:make", "nets.py:make (2)"]
    run("prune", *COUNTED, "--budget", "50%", "--out", "dense")
    found = run("compare", *SMALL, "dense", "dense/", "--seconds", 0, "--json")
    assert [n["name"] for n in found.json["networks"]] == ["dense", "dense (2)", "dense (3)"]


@pytest.mark.parametrize("command", [(), ("prune",), ("table",), *(("table", c) for c in TABLE_COMMANDS)])
def test_help_is_one_dash_away(command):
    assert CliRunner().invoke(app, [*command, "-h"]).output == CliRunner().invoke(app, [*command, "--help"]).output


def test_the_version_is_one_dash_away(run):
    assert run("-V").out == run("--version").out == f"halp-fx {halp_fx.__version__}\n"


@pytest.mark.parametrize("command", TABLE_COMMANDS)
def test_every_command_of_tables_has_json(command):
    assert "--json" in CliRunner().invoke(app, ["table", command, "--help"]).output


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("prune", *SMALL, "--budget", "50"), 1, 'did you mean "50%"?'),
        (("prune", *COUNTED, "--budget", "50%", "--runtime", "fast"), 1, "runtime 'fast' is not known: eager,"),
        (("sweep", *COUNTED, "--budgets", "50%,50%"), 1, "budgets: 50% is there twice"),
        (
            ("prune", *COUNTED, "--budget", "50%", "--data", "nets.py:fails"),
            1,
            "--data nets.py:fails fails: RuntimeError: no such luck",
        ),
        (("report", "small", "--html", "nets.py/page.html"), 1, "name another folder with --html"),
        (("report", "small", "--plots", "nets.py"), 1, "name another folder with --plots"),
        (("export", *SMALL, "small", "--to", "nets.py/a.onnx"), 1, "name another folder with --to"),
        (("profile", *COUNTED, "--plots", "nets.py"), 1, "name another folder with --plots"),
        (("bench", SMALL[0], "--input", "1x1x8x8"), 1, "the forward of 'nets.py:make' fails on the example inputs: "),
        (("bench", SMALL[0], "--input", "1x1x8x8"), 1, "Say what it takes with --input"),
        (("solve", "nowhere.json"), 1, "there is no file nowhere.json"),
        (("solve", "nets.py"), 1, "nets.py: this is not JSON"),
        (("solve", "."), 1, ". is a folder: name a file in it"),
        (("prune", *COUNTED, "--budget", "50%", "--weights", "."), 1, ". is a folder: name the file of weights in it"),
        (("prune", *COUNTED, "--budget", "50%", "--weights", "nets.py"), 1, "nets.py is no file of torch.save"),
        (("prune", *COUNTED, "--budget", "50%", "--data", "nets.py:make"), 1, "data is a Sequential: pass batches"),
        (("prune", *COUNTED, "--budget", "50%", "--ignore", "x"), 1, "error: --ignore: the name 'x' matches no"),
        (("prune", *COUNTED, "--budget", "50%", "--min-keep", "0"), 1, "--min-keep 0.0 must be a share above 0"),
        (
            ("prune", *COUNTED, "--budget", "50%", "--data", "nets.py:batches", "--loss", "cross_entropy"),
            1,
            "'cross_entropy' names no function: write module:function or file.py:function",
        ),
    ],
)
def test_a_mistake_is_said_with_its_remedy(run, words, code, said):
    if "small" in words:
        run("prune", *COUNTED, "--budget", "50%", "--out", "small")
    found = run(*words)
    assert found.code == code
    assert said in re.sub(r"\s+", " ", found.err)
    assert "Traceback" not in found.err


def test_a_mistake_leaves_no_folder(run):
    for words in (("--budget", "abc", "--out", "new/small"), ("--budget", "50%", "--data", "none", "--out", "new")):
        assert run("prune", *COUNTED, *words).code == 1
        assert not Path("new").exists()
    Path("there").mkdir()
    assert run("prune", *COUNTED, "--budget", "abc", "--out", "there").code == 1
    assert Path("there").is_dir()


def test_a_checkpoint_that_was_cut_off_is_said_to_be(run):
    torch.save(make_model("nets.py:make").state_dict(), "whole.pt")
    whole = Path("whole.pt").read_bytes()
    Path("half.pt").write_bytes(whole[: len(whole) // 2])
    found = run("prune", *COUNTED, "--budget", "50%", "--weights", "half.pt")
    assert found.code == 1
    assert "half.pt is no file of torch.save, or it is damaged or cut off" in " ".join(found.err.split())


def test_nothing_is_said_to_be_shown_before_it_can_be_written(run):
    """A page that cannot be written is an error before the report."""
    run("prune", *COUNTED, "--budget", "50%", "--out", "small")
    found = run("report", "small", "--html", "nets.py/page.html")
    assert found.out == ""
    assert Path("nets.py").is_file()


@pytest.mark.parametrize(
    "words", [("compare", "none.py:make", "nowhere"), ("export", "none.py:make", "nowhere", "--to", "a.onnx")]
)
def test_a_folder_that_is_not_there_is_said_before_a_model_is_made(run, words):
    found = run(*words)
    assert found.code == 1
    assert "there is no nowhere: `halp-fx prune … --out DIR` writes one" in found.err


def test_one_network_is_compared_with_none(run):
    said = run("bench", *SMALL, "--seconds", 0).out
    assert "of first" not in said
    assert '"of first"' in run("bench", SMALL[0], *SMALL, "--seconds", 0).out


def test_a_report_fits_a_narrow_terminal_as_it_would_unbroken(run, monkeypatch):
    """What is said in options is broken into lines once."""
    monkeypatch.setenv("COLUMNS", "40")
    said = run("prune", *COUNTED, "--budget", "50%").out
    note = said[said.index("note: ") :].split("\n\n")[0].splitlines()
    assert all(re.match(r"  \S", line) for line in note[1:])
