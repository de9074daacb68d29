"""NaN in a batch, of images or of the loss: the batch is left out and named, and nothing is poisoned by it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import halp_fx
from halp_fx import SaliencyError
from halp_fx.pruning import rehearsing


def network(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3), norm(16), nn.ReLU(), nn.Conv2d(16, 16, 3), norm(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    ).eval()


def data(size=32, count=6):
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.rand(size, 3, 12, 12, generator=draw), torch.randint(4, (size,), generator=draw)) for _ in range(count)
    ]


def with_nan(batches, number, sample):
    """The same with one sample of one batch that is NaN."""
    batches = copy.deepcopy(batches)
    batches[number][0][sample] = torch.nan
    return batches


class Watched(nn.Sequential):
    """Says whether the marked image was among its last inputs, so that a loss can be NaN for one batch."""

    marked: torch.Tensor
    seen = False

    def forward(self, x):
        Watched.seen = x.shape[1:] == self.marked.shape and bool((x == self.marked).flatten(1).all(1).any())
        return super().forward(x)


NORMS = {"batch norms": nn.BatchNorm2d, "group norms": lambda n: nn.GroupNorm(4, n)}


def watched(norm, marked):
    """A network, and a loss that is NaN for the batch that holds an image."""
    Watched.marked = marked
    return Watched(*network(norm)), lambda o, t: F.cross_entropy(o, t) * (torch.nan if Watched.seen else 1.0)


@pytest.fixture(params=NORMS, ids=list(NORMS))
def norm(request):
    return NORMS[request.param]


GIVEN = {"latency": "macs", "progress": False}


@pytest.mark.parametrize("sample", [0, 5, 100], ids=["first", "another", "in the second piece"])
def test_a_classifiers_loss_that_is_nan_names_the_batch(norm, sample):
    batches = data(128)
    model, loss_fn = watched(norm, batches[3][0][sample])
    coupling = halp_fx.channel_groups(network(norm), batches[0][0][:1])
    for importance in ("fisher", "batches", "taylor"):
        found = halp_fx.score(model, coupling, batches, loss_fn, importance)
        assert found.lost == (3,), importance
    small = halp_fx.prune(model, 0.5, batches[0][0][:1], data=batches, loss_fn=loss_fn, **GIVEN)
    assert any("batch 3 of data" in note for note in small.halp.notes), small.halp.notes


def test_a_classifiers_loss_that_is_always_nan_is_an_error(norm):
    batches = data()
    with pytest.raises(SaliencyError, match="all 6 batches had a loss or gradients that are not finite"):
        halp_fx.prune(
            network(norm),
            0.5,
            batches[0][0][:1],
            data=batches,
            loss_fn=lambda o, t: F.cross_entropy(o, t) * torch.nan,
            **GIVEN,
        )


def test_a_loss_that_fails_on_a_later_batch_is_an_error(norm):
    batches = data()
    batches[4][1][7] = 9
    with pytest.raises(SaliencyError, match="the loss of batch 4 of data failed: IndexError"):
        halp_fx.prune(network(norm), 0.5, batches[0][0][:1], data=batches, loss_fn=F.cross_entropy, **GIVEN)


class Shared(nn.Module):
    """Weights that the forward computes: samples are run one by one."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 4)

    def forward(self, x):
        weight = self.b.weight / self.b.weight.flatten(1).norm(dim=1)[:, None, None, None]
        return self.fc(F.conv2d(self.a(x).relu(), weight).relu().mean((2, 3)))


def test_samples_that_are_run_alone():
    batches = data(8)
    model = Shared()
    coupling = halp_fx.channel_groups(model, batches[0][0][:1])
    calls = []

    def loss_fn(output, target):
        calls.append(len(output))
        return F.cross_entropy(output, target) * (torch.nan if calls.count(8) == 3 else 1.0)

    assert halp_fx.score(model, coupling, batches, loss_fn, "fisher").lost == (2,)
    assert set(calls) == {8}, "a sample alone may have no loss: all of its pixels may be ignored"


@pytest.mark.parametrize("importance", [None, "fisher", "batches", "taylor", "magnitude"])
def test_an_image_that_is_nan_poisons_nothing(norm, importance):
    batches = with_nan(data(), 3, 2)
    small = halp_fx.prune(
        network(norm), 0.5, batches[0][0][:1], data=batches, loss_fn=F.cross_entropy, importance=importance, **GIVEN
    )
    assert all(bool(torch.isfinite(value).all()) for value in small.state_dict().values())
    assert bool(torch.isfinite(small.eval()(batches[0][0])).all())
    named = [note for note in small.halp.notes if "batch 3 of data" in note]
    assert len(named) == (importance != "magnitude" or norm is nn.BatchNorm2d)


def test_batch_norms_are_estimated_without_a_batch_that_is_nan(caplog):
    model, batches = network(), data()
    one = halp_fx.recalibrate(copy.deepcopy(model), [b for i, b in enumerate(batches) if i != 3])
    other = halp_fx.recalibrate(copy.deepcopy(model), with_nan(batches, 3, 0))
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value)
    assert "batch 3 of data" in caplog.text
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SaliencyError, match="all 2 batches"):
        halp_fx.recalibrate(model, [torch.full((4, 3, 12, 12), torch.nan)] * 2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_layers_are_compensated_without_samples_that_are_nan():
    model, batches = network(), data()
    x = batches[0][0][:1]
    small = halp_fx.prune(model, 0.5, x, data=batches, compensate=False, **GIVEN)
    other = copy.deepcopy(small)
    found = halp_fx.compensate(small, model, with_nan(batches, 3, 0), example_inputs=x)
    assert found.samples == 6 * 32 - 1
    assert found.layers
    assert all(bool(torch.isfinite(value).all()) for value in small.state_dict().values())
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(SaliencyError, match="not finite"):
        halp_fx.compensate(other, model, [torch.full((4, 3, 12, 12), torch.nan)], example_inputs=x)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("loss", [None, lambda m, b: F.cross_entropy(m(b[0]), b[1])], ids=["outputs", "loss"])
@pytest.mark.parametrize("number", [0, 3, 7])
def test_networks_are_judged_without_a_batch_that_is_nan(number, loss, monkeypatch):
    """Number 3 and 7 are held out for the judge."""
    monkeypatch.setattr(rehearsing, "STEPS", 6)
    batches = with_nan(data(24, 8), number, 1)
    report = halp_fx.prune(network(), 0.4, batches[1][0][:1], data=batches, loss=loss, effort="thorough", **GIVEN).halp
    assert all(math.isfinite(c.distance) and math.isfinite(c.tuned) for c in report.contenders)
    (said,) = (note for note in report.notes if "of data (counted from 0)" in note)
    assert said.startswith(f"batch {number} of data")


def test_a_judge_without_a_finite_batch_is_an_error():
    batches = [(torch.full((16, 3, 12, 12), torch.nan), torch.zeros(16, dtype=torch.long))] * 8
    with pytest.raises(SaliencyError, match="all 8 batches"):
        halp_fx.prune(network(), 0.4, torch.rand(1, 3, 12, 12), data=batches, effort="thorough", **GIVEN)
