"""Commands: what they leave, what they say, and what they exit with."""

from __future__ import annotations

import csv
import html
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from command_line import SMALL
from typer.testing import CliRunner

import halp_fx
from halp_fx.cli.app import app
from halp_fx.cli.guarding import _saved, as_options, guarded, search_goes_on
from halp_fx.cli.models import make_model
from halp_fx.scoring.losses import REMEDY

COUNTED = (*SMALL, "--cost", "macs")
COMMANDS = (
    "demo",
    "prune",
    "sweep",
    "apply",
    "export",
    "report",
    "compare",
    "bench",
    "profile",
    "explain",
    "solve",
    "info",
)
ROOT = Path(halp_fx.__file__).parents[1]


def test_prune_leaves_a_folder(run, tmp_path):
    found = run("prune", *COUNTED, "--budget", "50%", "--data", "nets.py:batches", "--out", "small")
    assert found.code == 0
    assert "Budget met" in found.out
    names = {p.name for p in (tmp_path / "small").iterdir()}
    assert names == {"model.safetensors", "plan.json", "report.html", "report.json"}
    assert halp_fx.Plan.from_json((tmp_path / "small" / "plan.json").read_text())


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
        ("a smaller round_to, or steps=1, comes closer", "a smaller --round-to, or --steps 1, comes closer"),
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


def test_export(run, tmp_path):
    run("prune", *COUNTED, "--budget", "50%", "--out", "small")
    found = run("export", *SMALL, "small", "--to", "nets.pt2", "--json")
    assert found.json["path"] == "nets.pt2"
    assert found.json["deviation"] < 1e-5
    assert (tmp_path / "nets.pt2").stat().st_size == found.json["size"]
    assert run("export", *SMALL, "small", "--to", "nets.doc").code == 1
    early = run("prune", *COUNTED, "--budget", "50%", "--out", "other", "--export", "doc")
    assert early.code == 1
    assert "--export doc is not known: onnx or pt2" in early.err
    assert not (tmp_path / "other").exists()


def test_report(run, tmp_path):
    pytest.importorskip("matplotlib")
    run("prune", *COUNTED, "--budget", "50%", "--out", "small")
    found = run("report", "small", "--html", "again.html", "--plots", "pictures", "--json")
    assert found.json["unit"] == "MACs"
    assert "Budget met" in found.err
    assert (tmp_path / "again.html").read_text() == (tmp_path / "small" / "report.html").read_text()
    assert {p.name for p in (tmp_path / "pictures").iterdir()} == {
        f"{n}.{k}" for n in ("layers", "widths") for k in ("png", "svg")
    }
    assert "there is no nowhere" in run("report", "nowhere").err
    assert run("report", "nets.py").code == 1


def test_apply(run, tmp_path):
    run("prune", *COUNTED, "--budget", "50%", "--out", "small")
    found = run("apply", *SMALL, "small", "--json")
    assert found.json["parameters"][1] < found.json["parameters"][0]
    other = run("apply", "nets.py:make", "small/plan.json", "--input", "1x3x8x8", "--set", "width=8")
    assert other.code == 1
    assert "error: " in other.err


def test_sweep(run, tmp_path, monkeypatch):
    scorings = []
    score = halp_fx.pruning.standing.score
    monkeypatch.setattr(halp_fx.pruning.standing, "score", lambda *a, **k: scorings.append(1) or score(*a, **k))
    found = run("sweep", *COUNTED, "--budgets", "80%, 50%,0.01%", "--out", "curve")
    assert found.code == 0
    assert "0.01%: a budget of" in found.out
    with (tmp_path / "curve" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["budget"] for r in rows] == ["80%", "50%"]
    assert float(rows[1]["measured"]) < float(rows[0]["measured"])
    assert len(scorings) == 1
    assert (tmp_path / "curve" / "50" / "report.html").is_file()
    assert "--min-keep" in found.err + found.out
    assert run("sweep", *COUNTED, "--budgets", "0.01%").code == 3


def test_a_sweep_goes_on_where_it_was(run, monkeypatch):
    def swept(budgets):
        torch.manual_seed(0)  # Without --weights they are random.
        return run("sweep", *COUNTED, "--out", "curve", "--state", "search", "--budgets", budgets, "--json")

    whole = swept("80%,50%").json["rows"]
    solved = []
    solve = halp_fx.pruning.choosing.solve
    monkeypatch.setattr(halp_fx.pruning.choosing, "solve", lambda *a, **k: solved.append(1) or solve(*a, **k))
    assert swept("80%,50%").json["rows"] == whole
    assert not solved
    other = swept("70%")
    assert other.code == 1
    assert "has passed" in other.err


def test_explain(run):
    assert "2 groups may shrink" in run("explain", *SMALL).out
    assert "not coupled" in run("explain", *SMALL, "--between", "0", "7").out
    assert {g["name"] for g in run("explain", *SMALL, "--json").json["groups"]} >= {"0", "3"}
    wrong = run("explain", *SMALL, "--ignore", "nothing*")
    assert wrong.code == 1
    assert "matches no module" in wrong.err


def test_bench(run):
    found = run("bench", *SMALL, "nets.py:network", "--seconds", 0, "--training", "--json").json
    assert [n["name"] for n in found["networks"]] == ["nets.py:make", "nets.py:network"]
    assert all(n["training"]["median_ms"] > 0 for n in found["networks"])


def test_info(run):
    found = run("info", "--json")
    assert found.json["torch"] == torch.__version__
    assert found.json["runtimes"].split(", ")[0] == "eager"
    assert torch.__version__ in found.err


def test_runtimes_that_cannot_be_used_are_not_listed(run, monkeypatch):
    monkeypatch.setattr("halp_fx.cli.info.which", lambda name: None)
    monkeypatch.setattr("halp_fx.cli.info.find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("info", "--json").json["runtimes"] == "eager"


@pytest.mark.parametrize(("group", "commands"), [((), len(COMMANDS) + 1), (("table",), 6)], ids=["all", "table"])
def test_a_list_of_commands_fits_a_narrow_terminal(group, commands):
    listed = CliRunner().invoke(app, [*group, "--help"], terminal_width=60).output.partition("Commands:")[2]
    lines = [line for line in listed.splitlines() if line.strip()]
    assert len(lines) == commands  # One line each.
    assert not [line for line in lines if "..." in line]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("prune", "resnet81", "--budget", "50%"), 1, "did you mean resnet18"),
        (("prune", *COUNTED, "--budget", "lots"), 1, "budget 'lots'"),
        (("prune", *COUNTED, "--budget", "0.01%"), 3, "that --min-keep and --round-to allow"),
        (("prune", *COUNTED, "--budget", "0.01%"), 3, "What may help: --branches, which"),
        (("prune", *SMALL, "--cost", "joy", "--budget", "50%"), 1, "--cost 'joy' is not known"),
        (("prune", *COUNTED, "--budget", "50%", "--weights", "none.pt"), 1, "there is no file none.pt"),
        (("prune", *COUNTED, "--budget", "50%", "--out", "nets.py"), 1, "nothing can be written to nets.py"),
        (("prune", *COUNTED, "--budget", "1%"), 3, "a budget of 1.11 k MACs (1% of dense) cannot"),
        (("prune", *COUNTED, "--budget", "50%", "--min-keep", "7"), 2, "less than or equal to 1"),
        (("prune", *COUNTED, "--budget", "latency=4ms"), 1, "as the cost (--cost) is macs"),
        (("prune", *COUNTED, "--budget", "50%", "--effort", "thorough"), 1, "--effort thorough judges networks by"),
        (("sweep", *COUNTED, "--budgets", ","), 1, "names none: write them with commas between"),
        (("report", "nets.py"), 1, "nets.py: this is not a report in JSON"),
        (("apply", *SMALL, "nets.py"), 1, "nets.py: "),
        (("explain", "nets.py"), 1, "nets.py:make"),
        (("explain", "yolo11n.pt"), 1, "did you mean ultralytics:yolo11n.pt?"),
        (("prune", *COUNTED), 2, "--budget"),
        (("prune", "nets.py:make", "--input", "3x8", "--budget", "50%"), 1, "Say what it takes with --input"),
        (("apply", *SMALL, "nowhere"), 1, "nowhere"),
        (("no-such-command",), 2, "no-such-command"),
        (("table", "show", "none.json"), 1, "none.json"),
    ],
)
def test_what_goes_wrong_is_said(run, words, code, said):
    found = run(*words)
    assert found.code == code
    assert said in re.sub(r"\s+", " ", found.err)
    assert "Traceback" not in found.err


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_writable(run, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    found = run("prune", *COUNTED, "--budget", "50%", "--out", "locked/small")
    assert found.code == 1
    assert "nothing can be written" in found.err


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


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, PermissionError(13, "Permission denied", "x")])
def test_what_a_command_raises_is_words(error, capsys):
    @guarded()
    def command():
        raise error

    with pytest.raises(BaseException) as stopped:  # noqa: PT011
        command()
    assert stopped.value.exit_code == (130 if error is KeyboardInterrupt else 1)
    assert capsys.readouterr().err.strip()
    assert not _saved


@pytest.mark.parametrize("command", [*((c,) for c in COMMANDS), *(("table", c) for c in ("build", "show", "merge"))])
def test_help_has_examples_and_exit_codes(command):
    found = CliRunner().invoke(app, [*command, "--help"], terminal_width=60)
    assert found.exit_code == 0
    assert f"halp-fx {' '.join(command)}" in found.output
    assert "Exit codes:" in found.output
    assert "130" in found.output
    assert max(map(len, found.output.splitlines())) <= 68  # Examples keep their lines.


def test_every_option_has_words():
    """No option is left without help."""
    for command in COMMANDS:
        text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "300"}).output
        options = [line for line in text.partition("Options:")[2].splitlines() if re.match(r"\s+-", line)]
        assert options
        for line in options:
            assert len(re.split(r"\s{2,}", line.strip())) > 1, line


def test_the_program_itself(tmp_path):
    """No display, a narrow terminal, no colours: words."""
    environment = {k: v for k, v in os.environ.items() if k != "DISPLAY"} | {"COLUMNS": "60", "TERM": "dumb"}
    words = [sys.executable, "-m", "halp_fx", "prune", "resnet18", "--budget", "50%", "--out", "setup.py"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: nothing can be written to setup.py")
    assert done.stdout == ""


def test_ctrl_c_while_commands_are_imported(monkeypatch, capsys):
    class Interrupted:
        @staticmethod
        def find_spec(name, path, target=None):
            if name == "halp_fx.cli":
                raise KeyboardInterrupt

    for name in [n for n in sys.modules if n.startswith("halp_fx.cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(halp_fx, "cli", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted, *sys.meta_path])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module("halp_fx.__main__").main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err.startswith("interrupted")


def test_solve(run):
    found = run("solve", ROOT / "tests" / "data" / "solver_problems" / "concat7@0.6.json", "--json")
    assert found.code == 0
    assert found.json["value"] <= found.json["upper bound"]
    assert found.err.split()[:2] == ["group", "width"]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_nothing_is_wider_than_the_terminal(run, monkeypatch, columns):
    """But a single word, which is there to be copied."""
    monkeypatch.setenv("COLUMNS", str(columns))
    commands = (
        ("info",),
        ("profile", *COUNTED),
        ("explain", *SMALL),
        ("prune", *COUNTED, "--budget", "60%", "--out", "small"),
        ("report", "small"),
        ("sweep", *COUNTED, "--budgets", "80%,0.1%"),
        ("compare", *SMALL[:1], "small", *SMALL[1:], "--seconds", "0"),
        ("apply", SMALL[0], "small", *SMALL[1:]),
        ("prune", *COUNTED, "--budget", "0.1%"),
    )
    for words in commands:
        found = run(*words)
        said = found.out + found.err
        lines = said.splitlines()
        assert lines
        assert words[0] == "report" or ("summary()" not in said and "pass data" not in " ".join(said.split())), words
        assert [line for line in lines if len(line) > columns and " " in line.strip()] == [], words


def test_with_json_standard_output_has_the_object_alone(run):
    """Also where a model's file prints."""
    Path("loud.py").write_text(
        "from nets import make as quiet\n\ndef make():\n    print('loading')\n    return quiet()\n"
    )
    found = run("explain", "loud.py:make", *SMALL[1:], "--json")
    assert found.json["groups"]
    assert found.err.startswith("loading\n")
