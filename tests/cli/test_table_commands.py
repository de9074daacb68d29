"""`halp-fx table …` and `halp-fx profile`, with a timer that obeys."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import SMALL
from test_latency_measured import FakeTimer

from halp_fx.latency import read_table


@pytest.fixture(autouse=True)
def _obedient(monkeypatch):
    fake = FakeTimer()
    monkeypatch.setattr("halp_fx.latency.sampler.timer_for", lambda runtime: fake)


def test_build_show_check(run):
    assert "points of 7 layers" in run("table", "build", *SMALL, "--table", "table.json").out
    assert "aten::convolution" in run("table", "show", "table.json").out
    assert "measured on this device" in run("table", "check", "table.json").out
    other = run("table", "check", "table.json", "--threads", 7)
    assert other.code == 1
    assert "threads" in other.err


def test_a_table_fits_a_narrow_terminal(run, monkeypatch):
    run("table", "build", *SMALL, "--table", "table.json")
    monkeypatch.setenv("COLUMNS", "60")
    said = run("table", "show", "table.json").out
    assert not [line for line in said.splitlines() if len(line) > 60]
    for whole in ("aten::convolution", "float32[O,I,3,3],", "0], 1])"):
        assert whole in said


def test_the_cache_is_the_default(run):
    run("table", "build", *SMALL)
    assert "torch_version" in run("table", "show", "--rows", 1).out


def test_build_says_where_in_json(run):
    found = run("table", "build", *SMALL, "--table", "t.json", "--json")
    assert found.json["path"] == "t.json"
    assert found.json["points"] == len(read_table(Path("t.json")))
    assert "points of" in found.err


def test_merge(run, tmp_path):
    run("table", "build", *SMALL, "--table", "a")
    run("table", "build", SMALL[0], "--shape", "1x3x16x16", "--table", "b")
    assert "points of 13 layers" in run("table", "merge", "merged.json", "a", "b").out
    merged, parts = read_table(tmp_path / "merged.json"), [read_table(tmp_path / name) for name in "ab"]
    assert len(merged) == len({(key, point) for t in parts for key, row in t.entries.items() for point in row})
    run("table", "build", *SMALL, "--table", "other", "--threads", 2)
    before = (tmp_path / "merged.json").read_bytes()
    assert run("table", "merge", "merged.json", "other").code == 1
    assert (tmp_path / "merged.json").read_bytes() == before


def test_profile(run, tmp_path):
    pytest.importorskip("matplotlib")
    found = run("profile", *SMALL, "--channels-last", "--plots", "plots", "--json")
    assert "end to end" in found.err
    assert found.json["unit"] == "ms"
    assert {g["name"] for g in found.json["groups"] if g["frozen"] is None} == {"0", "3"}
    assert (tmp_path / "plots" / "network.png").exists()


def test_profile_of_a_counted_cost(run):
    found = run("profile", *SMALL, "--cost", "macs", "--json").json
    assert found["unit"] == "MACs"
    assert found["dense"] == found["sum_of_layers"] == 3 * 16 * 9 * 64 + 16 * 16 * 9 * 36 + 16 * 4


def test_a_table_of_another_device(run, tmp_path, monkeypatch):
    assert "7 layers" in run("table", "request", *SMALL, "--out", "request.json").out
    found = run("table", "measure", "request.json", "--out", "pi5.json", "--json")
    assert found.json["points"] == len(read_table(tmp_path / "pi5.json"))
    assert found.json["untimed"] == []
    run("table", "measure", "request.json", "--quiet")
    (named,) = tmp_path.glob("*-eager-*.json")
    assert read_table(named).entries == read_table(tmp_path / "pi5.json").entries
    (tmp_path / "pi5.json").write_text(named.read_text().replace('"device": "', '"device": "Board '))
    assert "measured on Board " in run("table", "check", "pi5.json", "--elsewhere").out
    assert run("table", "check", "pi5.json").code == 1
    profiled = run("profile", *SMALL, "--table", "pi5.json", "--json").json
    assert profiled["unit"] == "ms"
    assert profiled["layers"][0]["cost"] == max(
        t.median_ms for row in read_table(named).entries.values() for t in row.values()
    )
    done = run("prune", *SMALL, "--table", "pi5.json", "--budget", "60%", "--out", "small", "--json")
    assert done.code == 0, done.err
    assert done.json["met"]


def test_what_is_in_tables_in_json(run):
    run("table", "build", *SMALL, "--table", "a.json")
    table = read_table(Path("a.json"))
    facts = {"path": "a.json", "points": len(table), "layers": 7}
    (shown,) = run("table", "show", "a.json", "--json").json["tables"]
    assert {name: shown[name] for name in facts} == facts
    assert shown["fingerprint"]["device"] == table.fingerprint.device
    checked = run("table", "check", "a.json", "--json").json
    assert {name: checked[name] for name in facts} == facts
    assert 0 <= checked["median_spread"] <= checked["worst_spread"]
    assert run("table", "merge", "b.json", "a.json", "--json").json["points"] == len(table)
    assert run("table", "check", "a.json", "--threads", 7, "--json").out == ""


def test_a_cache_without_tables_says_so(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HALP_FX_CACHE_DIR", str(tmp_path / "empty"))
    found = run("table", "show", "--json")
    assert found.json == {"tables": []}
    assert "no tables in" in found.err
