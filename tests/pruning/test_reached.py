"""What ends a call early carries the network that the call had come to, in whatever stage that was."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from test_report import Clock as Times
from test_report import latency
from test_state import BATCHES, IMAGES, model, pruned, score_fn, trained

import halp_fx
from halp_fx import SaliencyError
from halp_fx.pruning import rehearsing
from halp_fx.pruning.clock import Clock

SETTINGS = {"train_between": trained, "compensate": True, "score_fn": score_fn}


def ending(monkeypatch, stage, at):
    """End the work when a stage begins for the `at`-th time; returns how often it began."""
    began, inner = [0], Clock.__call__

    @contextmanager
    def timed(self, name):
        if name == stage:
            began[0] += 1
            if began[0] == at:
                raise KeyboardInterrupt
        with inner(self, name):
            yield

    monkeypatch.setattr(Clock, "__call__", timed)
    return began


def holds(reached, network=None):
    """Whether what was reached is what it says: of its plan, of its cost, and whole."""
    dense = network or model()
    twin = halp_fx.rewrite(dense, reached.plan, IMAGES[:1])
    assert [p.shape for p in reached.network.parameters()] == [p.shape for p in twin.parameters()]
    assert torch.isfinite(reached.network(IMAGES)).all()
    cost = halp_fx.MacsCost().total
    share = cost(halp_fx.channel_groups(reached.network, IMAGES[:1])) / cost(halp_fx.channel_groups(dense, IMAGES[:1]))
    assert reached.share == pytest.approx(share)
    return share < 1


@pytest.mark.parametrize(
    "stage",
    ["score", "solve", "rewrite", "train_between", "compensate", "recalibrate", "score_fn", "measure", "check layers"],
)
def test_ctrl_c_in_each_stage(stage, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        began = ending(patch, stage, 0)
        pruned(**SETTINGS)
    with monkeypatch.context() as patch:
        ending(patch, stage, began[0])  # The last time.
        with pytest.raises(KeyboardInterrupt) as caught:
            pruned(**SETTINGS)
    reached = caught.value.reached
    assert holds(reached)
    (note,) = caught.value.__notes__
    assert f"at {reached.share:.1%} of the dense cost" in note
    halp_fx.save(reached.network, tmp_path / "reached.safetensors")
    again = halp_fx.load(tmp_path / "reached.safetensors", model())
    assert torch.equal(again(IMAGES), reached.network(IMAGES))


def failing(at, how):
    """A `score_fn` that does not score the network that it is given at this call."""
    calls = []

    def score(network):
        calls.append(network)
        return how() if len(calls) == at else 1.0

    return score


def full():
    raise OSError("the disk is full")


FAILS = pytest.mark.parametrize(
    ("how", "kind"), [(full, OSError), (lambda: float("nan"), SaliencyError)], ids=["raises", "nan"]
)


@pytest.mark.parametrize(
    ("how", "kind"), [(full, OSError), (lambda: float("nan"), SaliencyError)], ids=["raises", "nan"]
)
def test_a_score_that_fails_at_the_very_end(how, kind):
    whole, _ = pruned(train_between=trained, score_fn=lambda network: 1.0)
    with pytest.raises(kind) as caught:
        pruned(train_between=trained, score_fn=failing(4, how))
    reached = caught.value.reached
    assert reached.plan == whole.halp.plan
    assert reached.share * whole.halp.dense == pytest.approx(whole.halp.measured)
    assert all(torch.equal(t, whole.state_dict()[n]) for n, t in reached.network.state_dict().items())


def test_where_nothing_was_removed_there_is_nothing():
    with pytest.raises(OSError, match="disk") as caught:
        pruned(score_fn=failing(1, full))
    assert not hasattr(caught.value, "reached")


def test_modes_are_those_of_the_model():
    dense = model().train()
    dense.branch.eval()
    with pytest.raises(OSError, match="disk") as caught:
        halp_fx.prune(
            dense, 0.4, IMAGES[:1], data=BATCHES, latency="macs", score_fn=failing(2, full), round_to=1, progress=False
        )
    small = caught.value.reached.network
    assert small.training
    assert small.norm.training
    assert not any(m.training for m in small.branch.modules())


def test_while_times_are_measured(monkeypatch):
    settings = {"latency": latency(Times()), "tolerance": 0.5}
    with monkeypatch.context() as patch:
        began = ending(patch, "measure", 0)
        pruned(0.8, **settings)
    ending(monkeypatch, "measure", began[0])
    with pytest.raises(KeyboardInterrupt) as caught:
        pruned(0.8, **settings)
    assert caught.value.reached.plan
    assert caught.value.reached.share < 1


def test_a_contest_hands_over_the_best_way_so_far(monkeypatch):
    settings = {"effort": "thorough", "steps": 2}
    monkeypatch.setattr(rehearsing, "STEPS", 4)
    with monkeypatch.context() as patch:
        began = ending(patch, "judge", 0)
        pruned(**settings)
    ending(monkeypatch, "judge", began[0] - 1)
    with pytest.raises(KeyboardInterrupt) as caught:
        pruned(**settings)
    assert holds(caught.value.reached)
    assert caught.value.reached.share <= 0.3 + 1e-9


@pytest.mark.parametrize("data", [BATCHES, None], ids=["data", "no data"])
@pytest.mark.parametrize(
    ("how", "kind"), [(full, OSError), (lambda: float("nan"), SaliencyError)], ids=["raises", "nan"]
)
def test_a_curve_that_ends_early_has_the_points_so_far(data, how, kind):
    call = {"data": data, "latency": "macs", "round_to": 1, "progress": False}
    whole = halp_fx.pareto(model(), [0.8, 0.6, 0.4], IMAGES[:1], score_fn=lambda network: 1.0, **call)
    with pytest.raises(kind) as caught:
        halp_fx.pareto(model(), [0.8, 0.6, 0.4], IMAGES[:1], score_fn=failing(4, how), **call)
    curve = caught.value.reached
    assert curve.points == whole.points[:2]
    assert curve.network(0.6).halp.met
    with pytest.raises(kind) as caught:
        halp_fx.pareto(model(), [0.8, 0.6], IMAGES[:1], score_fn=failing(2, how), **call)
    assert not isinstance(getattr(caught.value, "reached", None), halp_fx.Curve)
