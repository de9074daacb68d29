"""Commands that read a network or what `prune` left: export, report, apply, explain, bench, info, solve."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import COUNTED, SMALL

import halp_fx

ROOT = Path(halp_fx.__file__).parents[1]


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


def test_a_folder_of_another_make_asks_for_its_settings(run):
    run("prune", *COUNTED, "--budget", "50%", "--set", "width=24", "--out", "small")
    for words in (("compare", *SMALL, "small"), ("export", SMALL[0], "small", "--to", "x.pt2")):
        found = run(*words)
        assert found.code == 1
        assert "Name the model that was pruned, with the same --set" in " ".join(found.err.split())
    found = run("apply", *SMALL, "small")
    assert found.code == 1
    assert "Name the model that was pruned, with the same --set and --input" in " ".join(found.err.split())
    assert "Dynamo" not in found.err
    assert "--threads 9999 must be" in run("bench", *SMALL, "--threads", "9999").err


def test_apply_says_that_weights_are_random(run):
    model = ("squeezenet1_0", "--input", "1x3x64x64", "--set", "num_classes=2")
    run("prune", *model, "--cost", "macs", "--budget", "80%", "--out", "small")
    assert "squeezenet1_0 has random weights" in " ".join(run("apply", *model[:1], "small", *model[1:]).out.split())


def test_the_folder_of_a_sweep_is_not_one_of_its_networks(run):
    """Its own folder has no report: those that have are named."""
    run("sweep", *COUNTED, "--budgets", "80%,50%", "--out", "curve")
    for words in (("report", "curve"), ("apply", SMALL[0], "curve"), ("compare", *SMALL, "curve")):
        found = run(*words)
        assert found.code == 1
        assert "or name one of curve/50, curve/80" in " ".join(found.err.split())


@pytest.mark.parametrize("text", ["import torch\nmodel = 1\n", "hello", "[1]"])
@pytest.mark.parametrize("words", [("report", "a.txt"), ("apply", SMALL[0], "a.txt"), ("solve", "a.txt")])
def test_a_file_of_another_kind_is_told_without_python(run, words, text):
    """What the library says to who passed a path in place of a text is not said of a file that was read."""
    Path("a.txt").write_text(text)
    found = run(*words)
    assert found.code == 1
    assert "a.txt: this is not JSON" in found.err
    assert "pathlib" not in found.err


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


def test_solve(run):
    found = run("solve", ROOT / "tests" / "data" / "solver_problems" / "concat7@0.6.json", "--json")
    assert found.code == 0
    assert found.json["value"] <= found.json["upper bound"]
    assert found.err.split()[:2] == ["group", "width"]
