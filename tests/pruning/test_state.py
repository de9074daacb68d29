"""prune(..., state=): an interrupted search goes on to the very result that it would have had; foreign states are
refused and left alone."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from test_closing import Machine
from test_report import Clock, latency
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import halp_fx
from halp_fx import MacsCost, StateError
from halp_fx.pruning import cutting, resuming, session


class Net(nn.Module):
    """A residual network with a branch that may go, and dropout for whoever trains it."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.branch = nn.Sequential(nn.Conv2d(16, 12, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 1))
        self.b, self.out = nn.Conv2d(16, 12, 1), nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.a(x)))
        x = F.dropout(self.b(x + self.branch(x)).relu(), 0.2, self.training)
        return self.out(x.mean((2, 3)))


DRAW = torch.Generator().manual_seed(3)
IMAGES, LABELS = torch.randn(24, 3, 6, 6, generator=DRAW), torch.randint(5, (24,), generator=DRAW)
BATCHES = list(zip(IMAGES.split(8), LABELS.split(8), strict=True))


def model():
    torch.manual_seed(0)
    return Net().eval()


def trained(network):
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    network.train()
    for x, y in BATCHES[:2]:
        optimizer.zero_grad()
        F.cross_entropy(network(x + 0.1 * torch.randn_like(x)), y).backward()
        optimizer.step()


def score_fn(network):
    with torch.no_grad():
        return float(network.eval()(IMAGES)[:, 0].mean())


def shuffled():
    return DataLoader(TensorDataset(IMAGES, LABELS), 8, shuffle=True)


def pruned(budget=0.3, **settings):
    settings = {"data": BATCHES, "latency": "macs", "steps": 3, "round_to": 1, "progress": False} | settings
    torch.manual_seed(7)
    return halp_fx.prune(model(), budget, IMAGES[:1], **settings), torch.get_rng_state()


def the_same(a, b):
    (one, random), (other, moved) = a, b
    assert {n: t.shape for n, t in one.state_dict().items()} == {n: t.shape for n, t in other.state_dict().items()}
    assert all(torch.equal(t, other.state_dict()[n]) for n, t in one.state_dict().items())
    assert replace(one.halp, seconds={}) == replace(other.halp, seconds={})
    assert torch.equal(random, moved)


WAYS = {
    "plain": {},
    "trained, compensated": {"train_between": trained, "compensate": True},
    "judged": {"score_fn": score_fn, "branches": True},
    "stopped": {"score_fn": lambda m: float(m.a.out_channels), "max_drop": 8.0, "train_between": trained},
    "shuffled": {"data": shuffled(), "train_between": trained},
    "no data": {"data": None},
    "remembering": {"data": [IMAGES[i : i + 16] for i in (0, 2, 5, 8)], "importance": "batches"},
}


class Interrupted(KeyboardInterrupt):
    pass


def interrupting(monkeypatch, at):
    """Raise instead of a stage or a file, at the one with this number; returns how many passed."""
    passed = [0]

    def watch(module, name):
        inner = getattr(module, name)

        def run(*args, **kwargs):
            passed[0] += 1
            if passed[0] == at:
                raise Interrupted
            return inner(*args, **kwargs)

        monkeypatch.setattr(module, name, run)

    watch(resuming, "write_record")
    watch(session, "scored")
    watch(session, "rewrite")
    watch(cutting, "rewrite")
    return passed


def taken_up(call, at, folder, monkeypatch, **settings):
    """What a call returns that was interrupted at this place before."""
    with monkeypatch.context() as patch:
        interrupting(patch, at)
        with pytest.raises(Interrupted):
            call(state=folder, **settings)
    return call(state=folder, **settings)


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupted_search_ends_where_it_would_have(way, tmp_path, monkeypatch):
    whole = pruned(**WAYS[way])
    with monkeypatch.context() as patch:
        passed = interrupting(patch, 0)
        the_same(whole, pruned(state=tmp_path / "whole", **WAYS[way]))
    assert passed[0] >= 6
    for at in range(1, passed[0] + 1, 1 if way == "plain" else 3):
        the_same(whole, taken_up(pruned, at, tmp_path / str(at), monkeypatch, **WAYS[way]))


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    whole = pruned(state=tmp_path)
    monkeypatch.setattr(session, "scored", None)
    again = pruned(state=tmp_path)
    the_same(whole, again)
    assert again[0] is not whole[0]


def test_a_training_that_fails_costs_one_step(tmp_path):
    visits = []

    def train(network):
        visits.append(network.a.out_channels)
        if len(visits) == 2:
            raise RuntimeError("out of memory")
        trained(network)

    with pytest.raises(RuntimeError, match="out of memory"):
        pruned(state=tmp_path, train_between=train)
    pruned(state=tmp_path, train_between=train)
    assert len(visits) == 3
    assert visits[1] == visits[2] < visits[0]


def test_another_budget_goes_on_from_the_narrowest_wider_network(tmp_path, monkeypatch):
    half, _ = pruned(0.5, state=tmp_path, steps=None)
    seen = []
    inner = session.scored
    monkeypatch.setattr(session, "scored", lambda network, *rest: seen.append(network.plan) or inner(network, *rest))
    small, _ = pruned(0.3, state=tmp_path, steps=None)
    assert small.halp.met
    assert seen[0] == half.halp.plan
    for name, kept in small.halp.plan.items():
        assert set(kept) <= set(half.halp.plan.get(name, kept))
    seen.clear()
    wide, _ = pruned(0.9, state=tmp_path, steps=None)
    assert seen == []  # The dense network's scores were kept.
    assert wide.halp.plan == pruned(0.9, steps=None)[0].halp.plan


def test_the_same_model_at_its_dense_cost(tmp_path):
    copies = [pruned(1.0, state=tmp_path)[0] for _ in range(2)]
    assert copies[0] is not copies[1]
    assert copies[0].halp.measured == copies[1].halp.measured == copies[1].halp.dense
    assert pruned(0.5, state=tmp_path)[0].halp.met


class Batch:
    """One of a kind that is not known here: it looks like where it lies in memory."""

    def __init__(self, pair):
        self.images, self.labels = pair


def test_batches_of_any_kind(tmp_path):
    settings = {"loss": lambda m, b: F.cross_entropy(m(b.images), b.labels), "state": tmp_path}
    for _ in range(2):
        assert pruned(data=list(map(Batch, BATCHES)), **settings)[0].halp.met


def test_arrays_are_told_apart(tmp_path):
    def arrays():
        return [{"x": x.numpy().copy(), "y": y.numpy().copy()} for x, y in BATCHES]

    def loss(network, batch):
        return F.cross_entropy(network(torch.from_numpy(batch["x"])), torch.from_numpy(batch["y"]))

    settings = {"loss": loss, "state": tmp_path}
    assert pruned(data=arrays(), **settings)[0].halp.met
    others = arrays()
    others[0]["x"][5, 2, 5, 5] += 1  # Which the text of a large array leaves out.
    with pytest.raises(StateError, match="other data"):
        pruned(data=others, **settings)


def other_weights():
    net = model()
    with torch.no_grad():
        net.branch[0].weight[0, 0] += 1
    return net


FOREIGN = {
    "weights": ({"model": other_weights()}, r"another model: branch\.0\.weight has other values"),
    "class": (
        {"model": nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 5, 1))},
        "of a Net.* is a Sequential",
    ),
    "data": ({"data": BATCHES[:2]}, "other data: 3 batches with checksum .* 2 batches"),
    "loader": ({"data": shuffled()}, "other data: .*from a DataLoader"),
    "steps": ({"steps": 4}, "steps = 3, and this call has steps = 4"),
    "cost": ({"latency": "params"}, "latency = MacsCost.*ParamsCost"),
    "ignore": ({"ignore": ["a"]}, "ignore"),
    "training": ({"train_between": trained}, "train_between = None"),
    "example": ({"example_inputs": torch.randn(2, 3, 6, 6)}, "example_inputs"),
}


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    folder = tmp_path_factory.mktemp("state")
    pruned(0.6, state=folder)
    return folder


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_state_is_refused_and_left_alone(what, there):
    before = {p.name: p.read_bytes() for p in there.iterdir()}
    call = {"model": model(), "budget": 0.3, "example_inputs": IMAGES[:1], "data": BATCHES, "latency": "macs"}
    call |= {"steps": 3, "round_to": 1, "progress": False, "state": there} | FOREIGN[what][0]
    with pytest.raises(StateError, match=FOREIGN[what][1]):
        halp_fx.prune(**call)
    assert {p.name: p.read_bytes() for p in there.iterdir()} == before


def test_what_cannot_be_read_is_named(tmp_path):
    pruned(0.6, state=tmp_path)
    records = sorted(tmp_path.glob("0*.safetensors"))
    whole = records[1].read_bytes()
    records[1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StateError, match=r"0001\.safetensors cannot be read"):
        pruned(0.6, state=tmp_path)
    records[1].write_bytes(whole)
    index = json.loads((tmp_path / "search.json").read_text())
    (tmp_path / "search.json").write_text(json.dumps(index | {"format": "halp_fx.search/9"}))
    with pytest.raises(StateError, match=r"format 'halp_fx\.search/9'"):
        pruned(0.6, state=tmp_path)
    (tmp_path / "search.json").unlink()
    with pytest.raises(StateError, match=r"holds 0000\.safetensors"):
        pruned(0.6, state=tmp_path)


def test_the_model_is_left_as_it_was(tmp_path):
    net = model().train()
    before = copy.deepcopy(net.state_dict())
    for _ in range(2):
        small = halp_fx.prune(net, 0.5, IMAGES[:1], data=BATCHES, latency=MacsCost(), state=tmp_path, progress=False)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert all(m.training for m in (*net.modules(), *small.modules()))


def timed(monkeypatch, clock, budget=0.7, **settings):
    Machine(monkeypatch, overhead=0.2)
    return pruned(budget, latency=latency(clock), tolerance=0.05, **settings)


def test_times_are_kept_and_another_device_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "state"
    whole = timed(monkeypatch, first := Clock())
    with monkeypatch.context() as patch:
        interrupting(patch, 8)
        with pytest.raises(Interrupted):
            timed(patch, Clock(), state=folder)
    again = timed(monkeypatch, clock := Clock(), state=folder)
    the_same(whole, again)
    assert timed(monkeypatch, Clock(), 1.0, state=tmp_path / "met")[0].halp.met
    # What is timed afresh are the layers of the network that came out.
    assert clock.calls < first.calls / 2
    foreign = json.loads((folder / "latency.json").read_text())
    foreign["fingerprint"]["device"] = "another"
    (folder / "latency.json").write_text(json.dumps(foreign))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(StateError, match=r"another device or setting.*device: 'another'"):
        timed(monkeypatch, Clock(), state=folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
