"""profile, with a timer that obeys."""

from __future__ import annotations

import pytest
import torch
from test_latency_layers import Everything
from test_latency_measured import measured

from halp_fx.errors import LatencyError
from halp_fx.latency import CallableCost, LatencyTable, MacsCost
from halp_fx.reporting.plots import bars, save_plots
from halp_fx.reporting.profiling import paying_widths, profile


@pytest.fixture
def found():
    return profile(Everything(), torch.rand(2, 3, 8, 8), latency=measured())


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
    assert "smallest that can be reached" in text
    assert "widths that pay" in text
    assert f"of {len(found.layers)} layers" in text
    assert "frozen: reaches the model's output" in found.summary(rows=50)


def test_counted_costs_are_counted():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 8, 3))
    text = profile(model, torch.rand(1, 3, 16, 16), cost=MacsCost()).summary()
    assert "measured" not in text
    assert "sum of layers" not in text
    (group,) = [line.split() for line in text.splitlines() if line.split()[:2] == ["0", "32"]]  # No 0.0, no 3.45e+05.
    assert group[2:4] == ["501", "k"]


def test_the_model_is_left_as_found():
    model = Everything().train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    profile(model, torch.rand(2, 3, 8, 8), latency=measured())
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_network_that_costs_nothing():
    with pytest.raises(LatencyError, match="there are no shares of it"):
        profile(Everything(), torch.rand(2, 3, 8, 8), latency=CallableCost(lambda *_: 0.0))


def test_counted_costs_can_be_profiled():
    model, x = Everything(), torch.rand(2, 3, 8, 8)
    found = profile(model, x, latency="macs")
    assert found.summary() == profile(model, x, cost=MacsCost()).summary()  # By its earlier name.
    assert found.unit == "MACs"
    assert found.dense == found.total


def test_plots(found, tmp_path):
    pytest.importorskip("matplotlib")
    paths = save_plots(found, tmp_path / "plots")
    assert [p.name for p in paths[:2]] == ["network.png", "network.svg"]
    assert len(paths) > 6
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths[::2])
    assert all("<svg" in p.read_text() for p in paths[1::2])


def test_the_legend_has_the_colours_of_the_bars(found):
    pytest.importorskip("matplotlib")
    from matplotlib.colors import to_hex

    left, right = bars(found).axes
    drawn = {to_hex(patch.get_facecolor()) for patch in left.patches}
    entries = [to_hex(handle.get_facecolor()) for handle in left.get_legend().legend_handles]
    assert len(entries) == len(set(entries)) == 8  # Of 13 operators, seven and the others.
    assert set(entries) == drawn
    assert all(found.unit in label for label in (left.get_xlabel(), right.get_ylabel()))


def test_tables_in_memory_need_no_file():
    assert isinstance(measured().table, LatencyTable)
