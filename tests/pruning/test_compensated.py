"""With data, layers are compensated unless something speaks against it; without batch norms, at every step."""

import pytest
import torch
from oracle import relative_error
from torch import nn
from torch.nn import functional as F

import halp_fx
from halp_fx.pruning import restoring

EXAMPLE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DATA = list(torch.randn(4, 48, 3, 8, 8, generator=torch.Generator().manual_seed(1)))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Layers(nn.Module):
    """Patches, two residual blocks with layer norms, a head."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 2, 2)
        self.blocks = nn.Sequential(Block(16), Block(16))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1)))


def layers():
    torch.manual_seed(0)
    return Layers().double().eval()


def convolutions():
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(256, 5)).double().eval()


def pruned(model, **options):
    given = {"data": [x.double() for x in DATA], "latency": "macs", "round_to": 1, "progress": False, **options}
    return halp_fx.prune(model, 0.4, EXAMPLE.double(), **given)


def same(one, other):
    return all(torch.equal(t, other.state_dict()[name]) for name, t in one.state_dict().items())


@pytest.mark.parametrize("make", [layers, convolutions])
def test_layers_are_compensated_where_there_is_data(make):
    model = make()
    found, asked, without = (pruned(model, **o) for o in ({}, {"compensate": True}, {"compensate": False}))
    assert same(found, asked)
    assert found.halp.seconds["compensate"] > 0
    assert "compensate" not in without.halp.seconds
    x = torch.cat(DATA).double()
    assert relative_error(found(x), model(x)) < 0.7 * relative_error(without(x), model(x))


@pytest.mark.parametrize("solver", ["halp", "mdp"])
def test_a_published_method_stays_as_published(solver):
    labelled = [(x.double(), torch.arange(len(x)) % 5) for x in DATA]
    small = pruned(layers(), solver=solver, data=labelled, loss_fn=F.cross_entropy)
    assert "compensate" not in small.halp.seconds


@pytest.mark.parametrize("make", [layers, convolutions])
@pytest.mark.parametrize("options", [{"recalibrate": False}, {"data": None}], ids=["zeroed twin", "no data"])
def test_otherwise_nothing_is_compensated(make, options):
    model = make()
    small = pruned(model, **options)
    assert "compensate" not in small.halp.seconds
    if not options.get("recalibrate", True):
        twin = halp_fx.zero(model, small.halp.plan, EXAMPLE.double())
        torch.testing.assert_close(small(EXAMPLE.double()), twin(EXAMPLE.double()))


@pytest.mark.parametrize("make", [layers, convolutions])
def test_values_are_those_of_compensated_networks(make):
    """Each step looks at what the step before left: compensated, unless it has batch norms."""
    model, seen = make(), {}

    def looked_at(compensate):
        def importance(group, network):
            now = sum(p.numel() for p in network.parameters())
            seen.setdefault(compensate, {}).setdefault(now, network(x).detach())
            return torch.arange(1.0, group.size + 1).flip(0)

        return importance

    x = torch.cat(DATA).double()
    for compensate in (True, False):
        pruned(model, importance=looked_at(compensate), compensate=compensate, steps=3)
    assert list(seen[True]) == list(seen[False])
    assert len(seen[True]) == 3
    with_it, without = ([relative_error(y, model(x)) for y in seen[c].values()] for c in (True, False))
    if make is layers:
        assert all(a < 0.8 * b for a, b in zip(with_it[1:], without[1:], strict=True))
    else:
        assert with_it == without


def test_where_it_fails_a_note_says_so_unless_it_was_asked_for(monkeypatch):
    def fails(*_, **__):
        raise halp_fx.SaliencyError("layers cannot be compensated: the forward failed")

    monkeypatch.setattr(restoring, "compensate", fails)
    small = pruned(layers())
    assert any("cannot be compensated" in note for note in small.halp.notes)
    with pytest.raises(halp_fx.SaliencyError, match="cannot be compensated"):
        pruned(layers(), compensate=True)


def test_without_data_layers_are_compensated_with_images_that_are_drawn():
    """Whatever is drawn, channels that repeat others are made up for exactly."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 6, 3), nn.GELU(), nn.Conv2d(6, 5, 3)).double()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight[layer.out_channels // 2 :] = layer.weight[: layer.out_channels // 2]
            layer.bias[layer.out_channels // 2 :] = layer.bias[: layer.out_channels // 2]
    x = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    halves = {"0": tuple(range(4)), "2": tuple(range(3))}
    options = {"latency": "macs", "min_keep": 0.5, "round_to": 1, "progress": False}
    half, whole = (
        halp_fx.MacsCost().total(halp_fx.channel_groups(m, x)) for m in (halp_fx.rewrite(model, halves, x), model)
    )
    lowest = {"importance": lambda group: torch.arange(group.size, 0, -1)}
    plain, helped = (halp_fx.prune(model, half / whole, x, compensate=c, **options, **lowest) for c in (None, True))
    assert dict(plain.halp.plan) == dict(helped.halp.plan) == halves
    torch.testing.assert_close(plain(x), halp_fx.zero(model, plain.halp.plan, x)(x))
    torch.testing.assert_close(helped(x), model(x), rtol=1e-4, atol=1e-6)
    assert any("images that were drawn" in note for note in helped.halp.notes)


def test_without_data_a_note_names_what_would_help_where_there_are_no_batch_norms():
    found = {make: pruned(make(), data=None).halp.notes for make in (layers, convolutions)}
    assert any("compensate=True" in note for note in found[layers])
    assert not any("compensate=True" in note for note in found[convolutions])


def test_what_are_no_images_cannot_be_drawn():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(halp_fx.SaliencyError, match="compensate=True needs data, unless"):
        halp_fx.prune(model, 0.5, torch.rand(2, 4), latency="macs", compensate=True, progress=False)


def test_networks_of_a_curve_are_compensated_without_data_too():
    model = layers()
    curve = halp_fx.pareto(model, [0.7, 0.5], EXAMPLE.double(), latency="macs", compensate=True, progress=False)
    for point in curve.points:
        small, twin = curve.network(point), halp_fx.rewrite(model, point.plan, EXAMPLE.double())
        assert not same(small, twin)
