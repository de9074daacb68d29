"""compensate against its oracles: least squares on collected activations, and networks whose channels repeat others."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from oracle import Net, randomized
from torch import nn
from torch.nn import functional as F

import halp_fx
from halp_fx import HalpError, MacsCost, Plan, PlanError, SaliencyError
from halp_fx.rewriting import compensating
from halp_fx.scoring.regression import fitted


def images(count=24, side=8, channels=3, seed=0):
    return torch.randn(count, channels, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def compensated(model, kept, x, **options):
    """The rewritten network, a copy of it before, and what was done."""
    coupling = halp_fx.channel_groups(model, x[:2])
    small = halp_fx.rewrite(model, Plan(kept), x[:2], coupling=coupling)
    before = copy.deepcopy(small)
    done = halp_fx.compensate(small, model, x.split(7), Plan(kept), coupling=coupling, **options)
    return small, before, done


def recorded(model, layer, x):
    """What a layer gets and puts out."""
    found = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _, args, out: found.extend((args[0], out)))
    with torch.no_grad():
        model(x)
    handle.remove()
    return found


SECOND = {
    "padded": nn.Conv2d(6, 5, 3, padding=1),
    "strided": nn.Conv2d(6, 5, 3, stride=2, padding=(2, 1)),
    "dilated": nn.Conv2d(6, 5, (3, 2), dilation=(2, 1)),
    "same": nn.Conv2d(6, 5, (5, 3), padding="same"),
    "reflected": nn.Conv2d(6, 5, 3, padding=1, padding_mode="reflect"),
    "no bias": nn.Conv2d(6, 5, 1, bias=False),
    "transposed": nn.ConvTranspose2d(6, 5, 3),
    "transposed, strided": nn.ConvTranspose2d(6, 5, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2)),
    "transposed, dilated": nn.ConvTranspose2d(6, 5, 3, dilation=(2, 1), padding=1, bias=False),
    "transposed, cropped": nn.ConvTranspose2d(6, 5, 2, stride=3, padding=2),
}


def unfolded(layer, x):
    """Rows of what the kernel lies on, by PyTorch's own means."""
    if isinstance(layer, nn.ConvTranspose2d):  # One column is what comes of a one among zeros.
        ones = torch.eye(layer.weight[:, 0].numel(), dtype=x.dtype).reshape(-1, *layer.weight[:, 0].shape)
        settings = (None, layer.stride, layer.padding, layer.output_padding, 1, layer.dilation)
        return F.conv_transpose2d(x, ones.movedim(0, 1), *settings).movedim(1, -1).flatten(0, 2)
    sides = layer._reversed_padding_repeated_twice if layer.padding else [0] * 4
    x = F.pad(x, list(sides), mode="reflect" if layer.padding_mode == "reflect" else "constant")
    return F.unfold(x, layer.kernel_size, layer.dilation, 0, layer.stride).movedim(1, -1).flatten(0, 1)


def matrix(layer):
    """Its weight: (inputs x kernel, outputs)."""
    weight = layer.weight.detach()
    return (weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight).flatten(1).T


@pytest.mark.parametrize("kind", SECOND)
def test_a_layer_is_the_least_squares_twin(kind):
    """The same problem as one dense least squares: rows of the ridge below, a column of ones for the bias."""
    model = randomized(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), copy.deepcopy(SECOND[kind]), nn.Flatten())).eval()
    x = images()
    small, before, done = compensated(model, {"0": (0, 2, 3, 5)}, x)
    (layer,) = done.layers
    assert (layer.weight, layer.inputs, done.samples) == ("2.weight", (6, 4), 24)
    assert layer.after < layer.before
    rows = unfolded(before[2], recorded(before, "2", x)[0])
    wanted = recorded(model, "2", x)[1].movedim(1, -1).flatten(0, 2)
    start = matrix(before[2])
    ones = torch.ones(len(rows), 1, dtype=torch.float64)
    centred = rows - rows.mean(0) if before[2].bias is not None else rows
    strength = np.sqrt(layer.ridge * float(centred.square().mean(0).mean()) * len(rows))
    pull = strength * torch.eye(rows.shape[1], dtype=torch.float64)
    if before[2].bias is not None:
        rows, start = torch.cat([rows, ones], 1), torch.cat([start, before[2].bias.detach()[None]])
        pull = torch.cat([pull, torch.zeros(len(pull), 1, dtype=torch.float64)], 1)
    change = torch.linalg.lstsq(
        torch.cat([rows, pull]), torch.cat([wanted - rows @ start, torch.zeros(len(pull), 5, dtype=torch.float64)])
    ).solution
    got = matrix(small[2])
    if before[2].bias is not None:
        got = torch.cat([got, small[2].bias.detach()[None]])
    assert torch.allclose(got, start + change, atol=1e-8)
    assert change.abs().max() > 1e-3


def test_groups_of_a_convolution_are_fitted_each_for_itself():
    """A convolution of two groups equals two convolutions side by side."""
    torch.manual_seed(0)
    model = randomized(nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 3, groups=2), nn.Flatten()))
    x = images()
    coupling = halp_fx.channel_groups(model.eval(), x[:2])
    (group,) = coupling.prunable
    assert group.size == 8
    small, before, done = compensated(model, {group.name: (0, 1, 3, 4, 6)}, x)
    ((layer,), inputs) = done.layers, recorded(before, "2", x)[0]
    assert layer.inputs == (8, 5)
    wanted, got = recorded(model, "2", x)[1], recorded(small, "2", x)[1]
    for half in (0, 1):
        rows = F.unfold(inputs[:, 5 * half : 5 * half + 5], 3).movedim(1, -1).flatten(0, 1)
        rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], 1)
        outputs = wanted[:, 2 * half : 2 * half + 2].movedim(1, -1).flatten(0, 2)
        best = (rows @ torch.linalg.lstsq(rows, outputs).solution - outputs).square().mean()
        reached = (got - wanted)[:, 2 * half : 2 * half + 2].square().mean()
        assert best <= reached <= 1.05 * best + 1e-12


def repeated(layer, times=2.0):
    """The second half of a layer's outputs become multiples of the first: ReLU keeps them so."""
    half = layer.weight.shape[0] // 2
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias):
            tensor[half:] = times * tensor[:half]


class Networks:
    """Networks whose outputs a narrow one can reach exactly."""

    @staticmethod
    def plain():
        model = Net(lambda s, x: s.fc(s.b(s.a(x).relu()).relu().mean((2, 3))), a=nn.Conv2d(3, 8, 3, padding=1),
                    b=nn.Conv2d(8, 6, 3, padding=1), fc=nn.Linear(6, 4))  # fmt: skip
        return model, ["a", "b"]

    @staticmethod
    def residual():
        def forward(s, x):
            x = s.a(x)
            return s.fc((x + s.c(s.b(x).relu())).relu().mean((2, 3)))

        model = Net(forward, a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(8, 6, 3, padding=1),
                    c=nn.Conv2d(6, 8, 3, padding=1), fc=nn.Linear(8, 4))  # fmt: skip
        return model, ["a", "b", "c"]

    @staticmethod
    def concat():
        model = Net(lambda s, x: s.c(torch.cat([s.a(x), s.b(x)], 1).relu()).mean((2, 3)), a=nn.Conv2d(3, 8, 3),
                    b=nn.Conv2d(3, 6, 3), c=nn.Conv2d(14, 4, 3, padding=2))  # fmt: skip
        return model, ["a", "b"]

    @staticmethod
    def depthwise():
        model = Net(lambda s, x: s.fc(s.dw(s.a(x).relu()).relu().mean((2, 3))), a=nn.Conv2d(3, 8, 1),
                    dw=nn.Conv2d(8, 8, 3, padding=1, groups=8), fc=nn.Linear(8, 4))  # fmt: skip
        return model, ["a"]


@torch.no_grad()
def distances(model, *others):
    """How far what networks put out for other images is from what a model does, relative to that."""
    fresh = images(8, seed=1)
    want = model(fresh)
    return [float((other(fresh) - want).norm() / want.norm()) for other in others]


@pytest.mark.parametrize("name", ["plain", "residual", "concat", "depthwise"])
def test_what_repeats_other_channels_is_restored(name):
    model, layers = getattr(Networks, name)()
    model = randomized(model).eval()
    for layer in layers:
        repeated(model.get_submodule(layer))
    if name == "depthwise":
        with torch.no_grad():  # The same kernel and twice the bias for a channel that is twice another.
            model.dw.weight[4:], model.dw.bias[4:] = model.dw.weight[:4], 2 * model.dw.bias[:4]
    x = images(48)
    coupling = halp_fx.channel_groups(model, x[:2])
    kept = {g.name: tuple(range(g.size // 2)) for g in coupling.prunable}
    assert kept
    small, before, done = compensated(model, kept, x)
    assert not done.left
    got, without = distances(model, small, before)
    assert got < 1e-4
    assert without > 0.1


def normed():
    """Batch norms, a branch of its own width, ReLU: nothing repeats anything."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 12, 3, bias=False),
        nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 5),
    )  # fmt: skip
    with torch.no_grad():
        for _ in range(30):
            model.train()(torch.randn(32, 3, 8, 8))
    return model.eval()


HALVES = {"0": tuple(range(0, 16, 2)), "3": tuple(range(6))}


def distance(a, b, x):
    with torch.no_grad():
        return float((a(x) - b(x)).square().mean())


def test_nearer_to_the_dense_network_than_batch_norms_alone():
    model, x = normed(), torch.randn(256, 3, 8, 8)
    small, before, _ = compensated(model, HALVES, x)
    halp_fx.recalibrate(before, x.split(64))
    fresh = torch.randn(64, 3, 8, 8)
    assert distance(small, model, fresh) < 0.7 * distance(before, model, fresh)


def test_only_weights_of_layers_and_statistics_change():
    model, x = normed(), torch.randn(32, 3, 8, 8)
    model.train()
    state = copy.deepcopy(model.state_dict())
    drawn = torch.get_rng_state()
    small, before, done = compensated(model, HALVES, x)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert model.training
    assert [m.training for m in small.modules()] == [True] * len(list(small.modules()))
    assert [m.momentum for m in small.modules() if isinstance(m, nn.BatchNorm2d)] == [0.1, 0.1]
    changed = {k for k, v in small.state_dict().items() if not torch.equal(v, before.state_dict()[k])}
    statistics = {f"{n}.{k}" for n in (1, 4) for k in ("running_mean", "running_var", "num_batches_tracked")}
    assert changed == {"3.weight", "8.weight", "8.bias"} | statistics
    assert [layer.weight for layer in done.layers] == ["3.weight", "8.weight"]
    assert not any(p.grad is not None for p in small.parameters())
    assert all(p.requires_grad for p in small.parameters())


def test_statistics_stay_where_they_are_not_to_be_re_estimated():
    small, before, _ = compensated(normed(), HALVES, torch.randn(64, 3, 8, 8), recalibrate=False)
    for (name, a), b in zip(small.named_buffers(), before.buffers(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(small[3].weight, before[3].weight)


@pytest.mark.parametrize("count", [1, 4])
def test_few_samples_are_held_near_what_was_there_and_said(count):
    model, x = normed(), torch.randn(512, 3, 8, 8)
    few, before, done = compensated(model, HALVES, x[:count])
    many, _, enough = compensated(model, HALVES, x)
    assert done.samples == count
    assert f"{count} samples" in done.notes[0]
    assert not enough.notes
    moved = [float((net[8].weight - before[8].weight).detach().norm()) for net in (few, many)]
    assert moved[0] < moved[1]
    assert all(layer.ridge >= 0.01 for layer in done.layers)


def test_samples_that_do_not_help_change_no_weight():
    """Outputs that have nothing to do with what is left of the inputs."""
    rows = torch.Generator().manual_seed(0)
    inputs, missing = (torch.randn(64, n, dtype=torch.float64, generator=rows) for n in (40, 3))
    fit = fitted(inputs, missing)
    assert fit.ridge >= 1
    assert fit.after <= fit.before
    assert float((inputs @ fit.change).square().mean()) < 0.2 * fit.before


def test_a_layer_is_fitted_to_four_rows_for_each_input_that_is_left(monkeypatch):
    rows = []

    def counted(inputs, *rest):
        rows.append(tuple(inputs.shape))
        return fitted(inputs, *rest)

    monkeypatch.setattr(compensating, "fitted", counted)
    monkeypatch.setattr(compensating, "ROWS", 32)
    model = randomized(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.Flatten())).eval()
    compensated(model, {"0": (1, 4)}, images())
    assert rows == [(4 * 18, 18)]


def test_a_plan_that_removes_nothing():
    model = normed()
    small, before, done = compensated(model, {}, torch.randn(8, 3, 8, 8))
    assert done.layers == ()
    assert all(
        torch.equal(a, b) for a, b in zip(small.state_dict().values(), before.state_dict().values(), strict=True)
    )


def test_what_fails_leaves_the_network_as_it_was():
    model, x = normed(), torch.randn(16, 3, 8, 8)
    coupling = halp_fx.channel_groups(model, x[:2])
    small = halp_fx.rewrite(model, Plan(HALVES), x[:2], coupling=coupling)
    state = copy.deepcopy(small.state_dict())

    def fails(*_):
        raise RuntimeError("out of luck")

    small[6].register_forward_hook(fails)
    with pytest.raises(SaliencyError, match="out of luck"):
        halp_fx.compensate(small, model, [x], Plan(HALVES), coupling=coupling)
    assert all(torch.equal(v, state[k]) for k, v in small.state_dict().items())
    assert not small.training
    for data, match in (([], "no batches"), ([torch.randn(4, 5, 8, 8)], "channels")):
        with pytest.raises(SaliencyError, match=match):
            halp_fx.compensate(small, model, data, Plan(HALVES), coupling=coupling)
    with pytest.raises(PlanError, match="nowhere"):
        halp_fx.compensate(small, model, [x], Plan({"nowhere": (0,)}), coupling=coupling)
    with pytest.raises(HalpError, match="does not come from"):
        halp_fx.compensate(small, model, [x])
    with pytest.raises(PlanError, match="another plan"):
        halp_fx.compensate(small, model, [x], Plan({"0": (0, 1)}), coupling=coupling)


def test_values_that_are_not_finite_change_nothing():
    x = torch.randn(16, 3, 8, 8)
    x[3] = 3.4e38  # What is NaN already is left out; this overflows inside.
    small, before, done = compensated(normed(), HALVES, x, recalibrate=False)
    assert set(done.left) == {"3.weight", "8.weight"}
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), before.parameters(), strict=True))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 12), nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, left, right):
        return self.head((self.a(left) + self.b(right)).relu())


@pytest.mark.parametrize("form", ["tuple", "dict", "loss"])
def test_batches_of_other_kinds(form):
    model = TwoInputs()
    left, right = torch.randn(6, 5, 4), torch.randn(6, 5, 6)
    coupling = halp_fx.channel_groups(model, (left, right))
    plan = Plan({g.name: tuple(range(6)) for g in coupling.prunable})
    small = halp_fx.rewrite(model, plan, (left, right), coupling=coupling)
    batch = {"tuple": ((left, right), 0), "dict": {"left": left, "right": right}, "loss": [left, right, "name"]}[form]
    loss = (lambda m, b: m(b[0], b[1]).sum()) if form == "loss" else None
    done = halp_fx.compensate(small, model, [batch, batch], plan, coupling=coupling, loss=loss)
    assert [layer.weight for layer in done.layers] == ["head.weight"]
    assert done.samples == (6 if form == "loss" else 12)


def pruned(model, x, **options):
    options = {"latency": MacsCost(), "round_to": 1, "progress": False, "steps": 2} | options
    return halp_fx.prune(model, 0.4, x[:1], **options)


def test_prune_compensates():
    model, x = normed(), torch.randn(256, 3, 8, 8)
    data = list(x.split(64))
    plain, better = (pruned(model, x, data=data, compensate=c) for c in (False, True))
    fresh = torch.randn(64, 3, 8, 8)
    assert distance(better, model, fresh) < 0.8 * distance(plain, model, fresh)
    assert better.halp.met
    assert better.halp.seconds["compensate"] > 0
    assert not any("compensated" in note for note in better.halp.notes)
    few = pruned(model, x, data=[x[:8]], compensate=True)
    assert any("compensated with 8 samples" in note for note in few.halp.notes)


def test_prune_compensates_a_network_that_is_trained_in_between():
    """What training has changed is not taken back: the cut is made up for, relative to the trained network."""
    model, x = normed(), torch.randn(128, 3, 8, 8)
    seen = []

    def train(network):
        with torch.no_grad():
            network[8].bias += 100
        seen.append(network)

    small = pruned(model, x, data=[x], compensate=True, train_between=train)
    assert len(seen) == 1
    with torch.no_grad():
        assert (small(x) - model(x)).mean() == pytest.approx(100, rel=0.1)
