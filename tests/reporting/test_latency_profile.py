"""profile and the command line pieces, with a timer that obeys."""

from __future__ import annotations

import pytest
import torch
import typer
from test_latency_layers import Everything
from test_latency_measured import FakeTimer, measured
from torch import nn
from typer.testing import CliRunner

from halp_fx.cli import tables as commands
from halp_fx.latency import LatencyTable, MacsCost, MeasuredLatency, read_table
from halp_fx.latency.errors import ForeignTableError, LatencyError
from halp_fx.reporting.plots import save_plots
from halp_fx.reporting.profiling import paying_widths, profile


@pytest.fixture
def found():
    return profile(Everything(), torch.rand(2, 3, 8, 8), cost=measured())


def test_shares_and_reach(found):
    assert sum(x.share for x in found.layers) == pytest.approx(1)
    assert found.total == pytest.approx(sum(x.cost for x in found.layers))
    assert [x.cost for x in found.layers] == sorted((x.cost for x in found.layers), reverse=True)
    low, high = found.reachable
    assert 0 < low < high == found.dense
    assert found.least < found.total
    assert 0 <= found.fixed_share < 1
    assert all(x.spread == pytest.approx(0.01) for x in found.layers)


def test_groups_have_staircases(found):
    prunable = [g for g in found.groups if g.frozen is None]
    frozen = [g for g in found.groups if g.frozen]
    assert {g.name for g in frozen} == {"fc2"}
    assert found.groups[-1] in frozen
    for group in prunable:
        widths = [w for w, _ in group.curve]
        assert widths == sorted(widths)
        assert group.paying[0] == group.size == widths[-1]
        assert set(group.paying) <= set(widths)


def test_widths_that_pay():
    curve = [(8, 1.0), (16, 1.0), (24, 3.0), (32, 2.9), (40, 2.9), (48, 4.0)]
    assert paying_widths(curve) == (48, 40, 16)


def test_summary_names_what_matters(found):
    text = found.summary(rows=5)
    assert found.layers[0].name in text
    assert "reachable" in text
    assert "widths that pay" in text
    assert f"of {len(found.layers)} layers" in text
    assert "frozen: reaches the model's output" in found.summary(rows=50)


def test_the_model_is_left_as_found():
    model = Everything().train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    profile(model, torch.rand(2, 3, 8, 8), cost=measured())
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_counted_costs_can_be_profiled():
    found = profile(Everything(), torch.rand(2, 3, 8, 8), cost=MacsCost())
    assert found.unit == "MACs"
    assert found.dense == found.total


def test_plots(found, tmp_path):
    pytest.importorskip("matplotlib")
    paths = save_plots(found, tmp_path / "plots")
    assert paths[0].name == "network.png"
    assert len(paths) > 3
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths)


app = typer.Typer()
app.add_typer(commands.table_app, name="table")
app.command("profile")(commands.profile_command)


def make_small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 1))


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setenv("HALP_FX_CACHE_DIR", str(tmp_path / "cache"))
    fake = FakeTimer()

    def with_fake_timer(*args, **options):
        return MeasuredLatency(*args, **options, timer=fake)

    monkeypatch.setattr(commands, "MeasuredLatency", with_fake_timer)

    def invoke(*words, fails=None):
        result = CliRunner().invoke(app, [str(w) for w in words])
        if fails is None:
            assert result.exit_code == 0, result.output
        else:
            assert isinstance(result.exception, fails)
        return result.output

    return invoke


SMALL = ("test_latency_profile:make_small", "--shape", "1x3x8x8")


def test_build_show_check(run, tmp_path):
    path = tmp_path / "table.json"
    assert "points of 3 layers" in run("table", "build", *SMALL, "--table", path)
    assert "aten::convolution" in run("table", "show", path)
    assert "measured on this device" in run("table", "check", path)
    run("table", "check", path, "--threads", 7, fails=ForeignTableError)


def test_the_cache_is_the_default(run):
    run("table", "build", *SMALL)
    assert "torch_version" in run("table", "show", "--rows", 1)


def test_merge(run, tmp_path):
    a, b, other = (tmp_path / f"{name}.json" for name in ("a", "b", "other"))
    run("table", "build", *SMALL, "--table", a)
    run("table", "build", SMALL[0], "--shape", "1x3x16x16", "--table", b)
    out = tmp_path / "merged.json"
    assert "points of 6 layers" in run("table", "merge", out, a, b)
    assert len(read_table(out)) == len(read_table(a)) + len(read_table(b))
    run("table", "build", *SMALL, "--table", other, "--threads", 2)
    before = out.read_bytes()
    run("table", "merge", out, other, fails=ForeignTableError)
    assert out.read_bytes() == before


def test_profile_command(run, tmp_path):
    pytest.importorskip("matplotlib")
    output = run("profile", *SMALL, "--channels-last", "--plots", tmp_path / "plots")
    assert "end to end" in output
    assert (tmp_path / "plots" / "network.png").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("no_such_model",),
        ("no.such.module:f",),
        ("builtins:dict",),
        (SMALL[0], "--shape", "1x3xa"),
        (SMALL[0], "--dtype", "int8"),
    ],
)
def test_bad_input(run, words):
    run("table", "build", *words, fails=LatencyError)


def test_tables_in_memory_need_no_file():
    assert isinstance(measured().table, LatencyTable)
