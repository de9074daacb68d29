"""Where something is to be written: what cannot be is said before any work, for every option of every command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import SMALL

WORKED = """
from pathlib import Path
from nets import make as quiet

def make():
    Path("worked").touch()
    return quiet()
"""

LATE = ("late.py:make", *SMALL[1:])
COUNTED = ("--cost", "macs", "--budget", "50%")
WRITES = {
    "prune --out": ("prune", *LATE, *COUNTED, "--out"),
    "prune --state": ("prune", *LATE, *COUNTED, "--state"),
    "prune --table": ("prune", *LATE, "--budget", "50%", "--table"),
    "sweep --out": ("sweep", *LATE, "--cost", "macs", "--budgets", "50%", "--out"),
    "sweep --state": ("sweep", *LATE, "--cost", "macs", "--budgets", "50%", "--state"),
    "sweep --table": ("sweep", *LATE, "--budgets", "50%", "--table"),
    "apply --out": ("apply", *LATE, "plan.json", "--out"),
    "export --to": ("export", *LATE, "small", "--to"),
    "profile --plots": ("profile", *LATE, "--plots"),
    "profile --table": ("profile", *LATE, "--table"),
    "table request --out": ("table", "request", *LATE, "--out"),
    "table measure --out": ("table", "measure", "request.json", "--out"),
    "table build --table": ("table", "build", *LATE, "--table"),
    "table merge": ("table", "merge"),
    "report --html": ("report", "small", "--html"),
    "report --plots": ("report", "small", "--plots"),
    "demo --out": ("demo", "--out"),
}
FOLDERS = ("--out", "--state", "--plots")


@pytest.fixture
def late(run, monkeypatch):
    """A network that leaves a file when it is made, and timing that does, too."""
    Path("late.py").write_text(WORKED)
    Path("plan.json").write_text(json.dumps({"format": "halp_fx.plan/2", "kept": {}}))

    def timed(*_, **__):
        Path("worked").touch()
        raise AssertionError("something was timed")

    monkeypatch.setattr("halp_fx.latency.elsewhere.measure_grids", timed)
    monkeypatch.setattr("halp_fx.cli.digits.run", timed)
    return run


@pytest.mark.parametrize("option", WRITES)
@pytest.mark.parametrize("place", ["blocked/here.json", "/proc/nowhere/here.json"], ids=["below a file", "no folder"])
def test_a_place_that_cannot_be_written_is_said_before_any_work(late, option, place):
    Path("blocked").write_text("a file")
    late("table", "request", *SMALL, "--out", "request.json")
    late("prune", *SMALL, *COUNTED, "--out", "small")
    if option.startswith("export"):
        place = place.replace(".json", ".onnx")
    words = (*WRITES[option], place, *(["request.json"] if option == "table merge" else []))
    found = late(*words)
    assert found.code == 1, found.out
    last = " ".join(found.err.split())
    assert "nothing can be written to" in last or "cannot be written" in last, last
    assert place.split("/here")[0] in last
    assert option.split()[-1] in last or option == "table merge"
    assert not Path("worked").exists()


@pytest.mark.parametrize("option", ["table request --out", "export --to", "report --html"])
def test_a_folder_in_place_of_a_file(late, option):
    late("prune", *SMALL, *COUNTED, "--out", "small")
    Path("there.onnx").mkdir()
    found = late(*WRITES[option], "there.onnx")
    assert found.code == 1
    assert "there.onnx is a folder: name the file that is to be written in it" in " ".join(found.err.split())
    assert not Path("worked").exists()


def test_a_table_that_can_be_read_need_not_be_written(run):
    """`--table` of `profile` and `prune` reads, too."""
    run("table", "build", *SMALL, "--table", "t.json")
    Path("t.json").chmod(0o400)
    assert run("profile", *SMALL, "--table", "t.json").code == 0


def test_the_next_command_can_be_copied(run):
    """A name with a space in it is quoted."""
    found = run("table", "request", *SMALL, "--out", "my request.json")
    assert "halp-fx table measure 'my request.json'" in " ".join(found.out.split())
