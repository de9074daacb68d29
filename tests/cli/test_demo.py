"""`halp-fx demo`, on few digits with a small network and a cost that is at once there."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import halp_fx
from halp_fx.cli import digits
from halp_fx.errors import HalpError
from halp_fx.latency.costs import CallableCost, macs
from halp_fx.latency.interleaving import NetworkTiming


def milliseconds(layer, n_in, n_out):
    return 1e-7 * macs(layer, n_in, n_out)


@pytest.fixture
def quick(monkeypatch):
    """Every part of the demo runs, but times are computed and digits are few and drawn."""
    images = torch.rand(96, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = (images.mean((1, 2, 3)) > 0.5).long()
    few = digits.Digits(DataLoader(TensorDataset(images, labels), 48), images, labels)
    seen = {}

    def prune(*args, **options):
        seen.update(options, budget=args[1])
        return halp_fx.prune(*args, **options, latency=CallableCost(milliseconds), progress=False)

    monkeypatch.setattr(digits, "load_digits", lambda: few)
    monkeypatch.setattr(digits, "prune", prune)
    monkeypatch.setattr(digits, "DigitNet", lambda: digits_net(8))
    times = NetworkTiming(1.0, 0.0, 9), NetworkTiming(0.4, 0.0, 9, share=0.4)
    monkeypatch.setattr(digits, "interleaved", lambda networks, inputs: times)
    return seen


digits_net = digits.DigitNet


def test_the_demo_says_what_was_gained_and_leaves_it(run, quick, tmp_path):
    found = run("demo", "--budget", "50%", "--epochs", 2, "--out", "new/shown")
    assert found.code == 0, found.err
    assert quick["budget"] == "50%"
    rows = {line.split("  ")[0]: line.split() for line in reversed(found.out.splitlines())}
    dense, pruned, tuned = (rows[name] for name in ("dense", "after pruning", "after fine-tuning"))
    assert float(pruned[-2]) <= 0.51 * float(dense[-2])
    assert float(tuned[-2]) == pytest.approx(0.4 * float(dense[-2]), abs=2e-3)
    assert all(row[-3].endswith("%") for row in (dense, pruned, tuned))
    assert "latency now 40.0% of dense (budget 50%" in found.out
    folder = tmp_path / "new" / "shown"
    assert {p.name for p in folder.iterdir()} == {"report.html", "report.md", "plan.json"}
    assert "latency now 40.0%" in (folder / "report.md").read_text()
    again = halp_fx.rewrite(
        digits_net(8), halp_fx.Plan.from_json((folder / "plan.json").read_text()), torch.rand(1, 1, 16, 16)
    )
    assert sum(p.numel() for p in again.parameters()) == int(pruned[-1].replace(",", ""))


def test_a_budget_out_of_reach_has_its_exit_code(run, quick):
    found = run("demo", "--budget", "0.1%", "--epochs", 2)
    assert found.code == 3
    assert "cannot be reached" in found.err


def test_digits_are_those_of_scikit_learn():
    pytest.importorskip("sklearn")
    found = digits.load_digits()
    assert len(found.train.dataset) + len(found.images) == 1797
    assert found.images.shape[1:] == (1, 16, 16)
    assert 0 <= float(found.images.min()) < float(found.images.max()) <= 1
    assert set(found.labels.tolist()) == set(range(10))
    assert torch.equal(found.images, digits.load_digits().images), "the same ones every time"


def test_a_missing_library_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(HalpError, match=r"pip install .*scikit-learn"):
        digits.load_digits()


def test_training_learns():
    torch.manual_seed(0)
    images = torch.rand(64, 1, 16, 16)
    labels = (images[:, 0, :8].mean((1, 2)) > images[:, 0, 8:].mean((1, 2))).long()
    images[:, :, :8] += labels[:, None, None, None].float()
    data = digits.Digits(DataLoader(TensorDataset(images, labels), 32), images, labels)
    net = digits_net(8)
    assert digits.accuracy(digits.train(net, data, 6, 0.1), data) > 0.9
    assert not net.training
