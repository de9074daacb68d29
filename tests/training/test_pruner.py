"""Pruning inside a training loop, against a deterministic cost."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from comparing.networks import SqueezeExcite
from test_rebind import X, network
from torch import nn
from torch.nn import functional as F

import halp_fx
from halp_fx import Plan, pruning, training
from halp_fx.training.gathering import Gathered

CALL = {"latency": "macs", "round_to": 1, "steps": 3, "interval": 4}
WAYS = {"shrink": {}, "mask": {"mode": "mask"}, "soft": {"mode": "mask", "regrow": True}}


def adam(model):
    return torch.optim.Adam(model.parameters(), 0.01)


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)


def batches(count, seed=1, size=4):
    draw = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(size, 3, 8, 8, generator=draw, dtype=torch.float64)
        yield x, torch.randint(0, 5, (size,), generator=draw)


def train(model, optimizer, pruner, data, seen=None):
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        changed = pruner.step()
        optimizer.step()
        if seen is not None:
            seen.append(changed)


def widths(pruner):
    return {name: len(rows) for name, rows in pruner.plan.items()}


@pytest.mark.parametrize("make", [sgd, adam])
@pytest.mark.parametrize(
    "way",
    [
        {},
        {"mode": "mask"},
        {"mode": "mask", "regrow": True},
        {"solver": "halp"},
        {"importance": lambda group: torch.arange(group.size) + 1.0},
        {"schedule": "linear"},
        {"schedule": lambda share: share**0.5},
        {"branches": True},
    ],
    ids=["shrink", "mask", "regrow", "published", "callable", "linear", "own schedule", "branches"],
)
def test_the_budget_is_met_in_place(make, way):
    model = network().train()
    optimizer, parameters = make(model), list(model.parameters())
    pruner, seen = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, **CALL | way), []
    train(model, optimizer, pruner, batches(14), seen)
    assert pruner.done
    assert pruner.decisions == 3
    assert [i for i, changed in enumerate(seen) if changed][-1] == 11
    small = pruner.finish()
    assert small is model
    left = {id(p) for p in model.parameters()}
    assert left <= {id(p) for p in parameters}
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == left
    assert small.halp.met
    assert 0.3 < small.halp.measured / small.halp.dense <= 0.4 + 1e-9
    fresh = halp_fx.rewrite(network(), pruner.plan, X)
    assert [p.shape for p in fresh.parameters()] == [p.shape for p in model.parameters()]
    train(model, optimizer, pruner, batches(1))


class Both(nn.Module):
    """In training it returns what detectors do: more than in evaluation."""

    def __init__(self):
        super().__init__()
        self.body, self.side = network(), nn.Conv2d(8, 5, 1).double()
        self.norm = nn.BatchNorm1d(5).double()

    def forward(self, x):
        y = self.norm(self.body(x))
        return y + self.norm(self.side(self.body[:2](x)).mean((2, 3))) if self.training else y


def test_what_norms_count_in_training_is_no_constant_of_the_forward():
    """The network is coupled in both modes, and norms have counted on when it is cut."""
    model = Both().train()
    optimizer = sgd(model)
    pruner = halp_fx.Pruner(model, 0.4, X[:2], optimizer=optimizer, **CALL)
    train(model, optimizer, pruner, batches(14))
    assert pruner.finish().halp.met


def test_every_step_stops_on_its_way():
    model = network().train()
    pruner, shares = halp_fx.Pruner(model, 0.3, X[:1], **CALL | {"steps": 4, "interval": 1}), []
    whole = halp_fx.MacsCost().total(halp_fx.channel_groups(network(), X[:1]))
    for x, y in batches(4):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        pruner.step()
        shares.append(halp_fx.MacsCost().total(halp_fx.channel_groups(model, X[:1])) / whole)
    for step, share in enumerate(shares):
        assert 0.8 * 0.3 ** ((step + 1) / 4) < share <= 0.3 ** ((step + 1) / 4) + 1e-9


def test_a_cut_couples_once(monkeypatch):
    """What is found of the network that was cut serves the next step, too."""
    model, calls = network().train(), []
    optimizer = sgd(model)
    pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, **CALL)
    for room in (pruning.standing, training.shrinking):
        found = room.channel_groups
        monkeypatch.setattr(
            room, "channel_groups", lambda *args, found=found, **kw: calls.append(0) or found(*args, **kw)
        )
    train(model, optimizer, pruner, batches(12))
    assert pruner.done
    assert len(calls) == pruner.decisions == 3


def test_rows_are_the_derivatives_by_gates():
    """In float64 against gates in the forward."""
    model = network().train()
    coupling = halp_fx.channel_groups(model, X)
    gathered = Gathered.of(model, coupling)
    gate = torch.ones(8, dtype=X.dtype, requires_grad=True)
    model[3].bn1.register_forward_hook(lambda module, args, out: out * gate[:, None, None])
    F.cross_entropy(model(X), torch.arange(4)).backward()
    gathered.add(1.0)
    own = gathered.stacked()[0, gathered.columns["3.conv1"]]
    torch.testing.assert_close(own.double(), gate.grad, rtol=1e-5, atol=1e-8)
    readers = Gathered.of(model, coupling, readers=True)
    readers.add(1.0)
    # What reads a channel sees it after a ReLU, which a gate passes.
    torch.testing.assert_close(readers.stacked()[0, readers.columns["3.conv1"]], own, rtol=1e-4, atol=1e-7)


def masked_slots(model, plan):
    """Slots that a plan takes from each parameter, by rewriting places."""
    places = copy.deepcopy(model)
    for parameter in places.parameters():
        parameter.data = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
    gone = {name: torch.ones(p.numel(), dtype=torch.bool) for name, p in model.named_parameters()}
    for name, left in halp_fx.rewrite(places, plan, X).named_parameters():
        gone[name][left.long().reshape(-1)] = False
    return gone


@pytest.mark.parametrize("make", [sgd, adam, lambda m: torch.optim.Adamax(m.parameters(), 0.01)])
def test_what_is_masked_is_zero_after_every_step(make):
    model = network().train()
    optimizer = make(model)
    pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, mode="mask", **CALL)
    for number, (x, y) in enumerate(batches(14)):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if number != 12:  # A step that the pruner does not see, either.
            pruner.step()
        optimizer.step()
        gone = masked_slots(model, pruner.plan)
        for name, parameter in model.named_parameters():
            tensors = [parameter, parameter.grad, *optimizer.state[parameter].values()]
            for tensor in (t for t in tensors if t.shape == parameter.shape):
                assert not tensor.reshape(-1)[gone[name]].any()
    assert sum(int(rows.sum()) for rows in gone.values()) > 300
    assert model[0].out_channels == 8


def test_masked_and_shrunk_networks_are_one():
    """Through the bias of norms, too, in training and in evaluation."""
    model = network().train()
    optimizer = sgd(model)
    pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, mode="mask", **CALL)
    train(model, optimizer, pruner, batches(14))
    outputs = [model(X).detach(), model.eval()(X).detach()]
    pruner.finish()
    assert model[3].bn1.num_features < 8
    torch.testing.assert_close(model.train()(X), outputs[0], rtol=1e-9, atol=1e-12)
    again = copy.deepcopy(optimizer.state[model[4].weight]["momentum_buffer"])
    assert again.shape == model[4].weight.shape


def test_soft_masks_let_channels_return_and_decay_what_is_hidden():
    model = network().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    pruner = halp_fx.Pruner(
        model, 0.5, X[:1], optimizer=optimizer, mode="mask", regrow=True, **CALL | {"interval": 1, "steps": 1}
    )
    train(model, optimizer, pruner, batches(1))
    gone = sorted(set(range(8)) - set(pruner.plan["3.conv1"]))
    reader, masks = model[3].conv2.weight, pruner._masks
    assert gone
    assert not reader[:, gone].any()
    for _ in range(2):
        hidden = {i: h for i, ((p, _, _), h) in enumerate(zip(masks.places, masks.hidden, strict=True)) if p is reader}
        (place,) = hidden
        optimizer.zero_grad()
        F.cross_entropy(model(X), torch.arange(4)).backward()
        assert reader.grad[:, gone].any(), "gradients pass the mask"
        want = (hidden[place] - 0.05 * reader.grad[:, gone]) * (1 - 0.05 * 2e-4)
        pruner.step()
        optimizer.step()
        torch.testing.assert_close(masks.hidden[place], want)
        assert not reader[:, gone].any()
    masks.set(model, pruner._trained.dense, Plan())
    torch.testing.assert_close(reader[:, gone], want)


def test_other_channels_are_chosen_when_others_matter():
    model = network().train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-6)
    worth = {"3.conv1": torch.arange(8.0) + 1}
    call = {"importance": lambda group: worth.get(group.name, torch.ones(group.size))}
    call |= {"ignore": ["0", "4"], "mode": "mask", "regrow": True, "interval": 1, "steps": 2, "schedule": lambda s: 0.9}
    pruner = halp_fx.Pruner(model, 0.6, X[:1], optimizer=optimizer, **CALL | call)
    train(model, optimizer, pruner, batches(1))
    first = pruner.plan["3.conv1"]
    worth["3.conv1"] = torch.arange(8.0).flip(0) + 1
    train(model, optimizer, pruner, batches(1))
    assert first[-1] == 7
    assert pruner.plan["3.conv1"][0] == 0
    assert 7 not in pruner.plan["3.conv1"]


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
@pytest.mark.parametrize("stop", [2, 6, 13])
def test_an_interrupted_run_resumes_to_equal_bits(way, stop, tmp_path):
    def start():
        model = network().float().train()
        optimizer = adam(model)
        return model, optimizer, halp_fx.Pruner(model, 0.4, X[:1].float(), optimizer=optimizer, **CALL | way)

    data = [(x.float(), y) for x, y in batches(15)]
    model, optimizer, pruner = start()
    train(model, optimizer, pruner, data[:stop])
    torch.save([model.state_dict(), optimizer.state_dict(), pruner.state_dict()], tmp_path / "run.pt")
    train(model, optimizer, pruner, data[stop:])
    again, other, resumed = start()
    states = torch.load(tmp_path / "run.pt")  # No code in it: weights_only.
    resumed.load_state_dict(states[2])
    again.load_state_dict(states[0])
    other.load_state_dict(states[1])
    train(again, other, resumed, data[stop:])
    assert resumed.plan == pruner.plan
    a, b = pruner.finish(), resumed.finish()
    assert list(a.state_dict()) == list(b.state_dict())
    assert all(torch.equal(v, b.state_dict()[n]) for n, v in a.state_dict().items())
    assert replace(b.halp, seconds={}) == replace(a.halp, seconds={})


def test_a_budget_that_is_met_removes_nothing():
    model = network().train()
    pruner = halp_fx.Pruner(model, 1.0, X[:1], **CALL)
    train(model, sgd(model), pruner, batches(5))
    assert pruner.done
    assert not pruner.plan
    assert pruner.finish().halp.met


def test_finish_takes_what_is_left_of_the_way():
    model = network().train()
    optimizer = sgd(model)
    pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, **CALL)
    train(model, optimizer, pruner, batches(6))
    assert pruner.decisions == 1
    assert pruner.finish().halp.met


def test_a_group_of_one_channel_stays_while_others_shrink():
    """It is no group of the cut network any more: the plan still names it."""
    torch.manual_seed(0)
    squeeze = [nn.Conv2d(3, 8, 1), SqueezeExcite(8, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*squeeze, nn.Linear(8, 5)).double().train()
    worth = {"0": torch.arange(8.0) + 1, "1.down": torch.arange(4.0) * 1e-6 + 1e-6}
    call = CALL | {"steps": 3, "interval": 1, "importance": lambda group: worth[group.name][: group.size]}
    pruner, seen = halp_fx.Pruner(model, 0.25, X[:1, :, :1, :1], min_keep=1, **call), []
    for x, y in batches(3):
        model.zero_grad()
        F.cross_entropy(model(x[:, :, :1, :1]), y).backward()
        pruner.step()
        seen.append(widths(pruner))
    assert [row["1.down"] for row in seen[1:]] == [1, 1]
    assert seen[2]["0"] < seen[1]["0"]
    assert pruner.finish().halp.met
