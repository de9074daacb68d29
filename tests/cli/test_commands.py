"""All commands: what they say, what they refuse, how wide they write, and what they exit with."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import COMMANDS, COUNTED, SMALL
from typer.testing import CliRunner

import halp_fx
from halp_fx.cli.app import app
from halp_fx.cli.guarding import _saved, guarded

ROOT = Path(halp_fx.__file__).parents[1]


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
        (("prune", *SMALL, "--cost", "joy", "--budget", "50%"), 1, "--cost 'joy' is not known"),
        (("prune", *COUNTED, "--budget", "50%", "--weights", "none.pt"), 1, "there is no file none.pt"),
        (("prune", *COUNTED, "--budget", "50%", "--out", "nets.py"), 1, "nothing can be written to nets.py"),
        (("prune", *COUNTED, "--budget", "1%"), 3, "a budget of 1.11 k MACs (1% of dense) cannot"),
        (("prune", *COUNTED, "--budget", "50%", "--min-keep", "7"), 2, "less than or equal to 1"),
        (("prune", *COUNTED, "--budget", "latency=4ms"), 1, "as the cost (--cost) is macs"),
        (("prune", *COUNTED, "--budget", "50%", "--effort", "thorough"), 1, "--effort thorough judges networks by"),
        (("sweep", *COUNTED, "--budgets", ","), 1, "names none: write them with commas between"),
        (("report", "nets.py"), 1, "nets.py: this is not JSON"),
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


def test_a_saved_network_has_its_report(run):
    assert run("prune", *COUNTED, "--budget", "60%", "--out", "small").code == 0
    again = run("report", "small/model.safetensors")
    assert again.code == 0
    assert again.out == run("report", "small").out


def test_with_json_standard_output_has_the_object_alone(run):
    """Also where a model's file prints."""
    Path("loud.py").write_text(
        "from nets import make as quiet\n\ndef make():\n    print('loading')\n    return quiet()\n"
    )
    found = run("explain", "loud.py:make", *SMALL[1:], "--json")
    assert found.json["groups"]
    assert found.err.startswith("loading\n")
