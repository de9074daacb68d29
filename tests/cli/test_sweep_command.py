"""`halp-fx sweep`: a folder for each budget, and how it goes on."""

from __future__ import annotations

import csv

from command_line import COUNTED

import halp_fx


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


def test_networks_without_weights_are_said_to_be(run):
    counted = ("squeezenet1_0", "--input", "1x3x64x64", "--cost", "macs", "--out", "out")
    for words in (("sweep", "--budgets", "50%"), ("prune", "--budget", "50%")):
        assert "squeezenet1_0 has random weights: name a file" in " ".join(
            run(words[0], *counted, *words[1:]).out.split()
        )


def test_a_sweep_goes_on_where_it_was(run, monkeypatch):
    def swept(budgets):
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
