"""What callers hand in as data and loss: batches of any kind, in any mode, under any ambient state."""

from __future__ import annotations

import random
from collections import UserDict

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import halp_fx
from halp_fx import MacsCost, SaliencyError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, pixel_values):
        return self.fc(self.b(self.n(self.a(pixel_values)).relu()).relu().mean((2, 3)))


X, Y = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])


@pytest.fixture
def setting():
    model = Net()
    return model, halp_fx.channel_groups(model, X)


class Features(UserDict):
    """As the batches of transformers: a mapping that moves itself."""

    def to(self, device):
        return Features({k: v.to(device) for k, v in self.items()})


FORMS = {
    "pair": ((X, Y), lambda m, b: F.cross_entropy(m(b[0]), b[1])),
    "dict": ({"pixel_values": X, "labels": Y}, lambda m, b: F.cross_entropy(m(b["pixel_values"]), b["labels"])),
    "three items": ((X, "a name", Y), lambda m, b: F.cross_entropy(m(b[0]), b[2])),
    "bare tensor": (X, lambda m, b: F.cross_entropy(m(b), Y)),
    "mapping of its own": (Features(x=X, y=Y), lambda m, b: F.cross_entropy(m(b["x"]), b["y"])),
    "dict of losses": ((X, Y), lambda m, b: {"a": F.cross_entropy(m(b[0]), b[1]), "b": torch.zeros(())}),
    "losses of one element": ((X, Y), lambda m, b: [F.cross_entropy(m(b[0]), b[1])[None]]),
    "parts of the model": ((X, Y), lambda m, b: F.cross_entropy(m.fc(m.b(m.n(m.a(X)).relu()).relu().mean((2, 3))), Y)),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_loss_of_model_and_batch(setting, name):
    batch, loss = FORMS[name]
    want = halp_fx.score(*setting, [(X, Y)], F.cross_entropy, "taylor").scores
    got = halp_fx.score(*setting, [batch], importance="taylor", loss=loss).scores
    for group, expected in want.items():
        np.testing.assert_allclose(got[group], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"pixel_values": X, "labels": Y}, r"a dict with the keys 'pixel_values', 'labels'.*loss=lambda model, batch"),
        ((X[0], 3), r"an int\): one sample of a data set\? Pass a torch.utils.data.DataLoader"),
        ((X, Y, Y), r"a tuple of 3 \(a tensor of shape \(4, 3, 8, 8\), .*loss=lambda"),
        (X, r"a tensor of shape \(4, 3, 8, 8\).*loss=lambda"),
        ((torch.randn(2, 7, 8, 8), Y[:2]), r"batch 0 of data failed.*\(2, 7, 8, 8\)"),
        (([X, X], Y), r"batch 0 of data failed: TypeError"),
        ((X, "label"), r"batch 0 of data failed.*a str"),
    ],
    ids=["dict", "sample", "three", "tensor", "channels", "two inputs", "target"],
)
def test_a_wrong_batch_is_described(setting, batch, words):
    with pytest.raises(SaliencyError, match=f"(?s){words}"):
        halp_fx.score(*setting, [batch], F.cross_entropy)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"data": [(X, Y)], "loss_fn": F.cross_entropy, "loss": lambda m, b: 0}, "both"),
        ({"loss": lambda m, b: 0}, "loss without data"),
        ({"data": [(X, Y)], "importance": "taylor"}, "'taylor' needs loss_fn"),
        ({"data": [(X, Y)], "loss_fn": nn.CrossEntropyLoss}, "the class CrossEntropyLoss"),
        ({"data": [(X, Y)], "loss": "mse"}, "loss is a str"),
        ({"data": [(X, Y)], "loss": lambda m, b: m(b[0])}, r"a scalar tensor.*a tensor of shape \(4, 4\)"),
        ({"data": [(X, Y)], "loss": lambda m, b: {}}, "a scalar tensor"),
        ({"importance": "fisher"}, "'fisher'"),
        ({"importance": 3}, "callable"),
        ({"importance": dict}, "is a class"),
    ],
)
def test_what_was_passed_is_checked_before_anything_runs(setting, arguments, words):
    with pytest.raises(SaliencyError, match=words):
        halp_fx.score(*setting, **arguments)
    with pytest.raises(SaliencyError, match=words):
        halp_fx.prune(setting[0], 0.5, X, latency=MacsCost(), progress=False, **arguments)


def test_a_loss_may_need_train_mode(setting):
    """Each batch starts in eval mode; statistics and modes are given back."""
    model, coupling = setting
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = []

    def loss(network, batch):
        modes.append(network.training)
        return F.cross_entropy(network.train()(batch[0]), batch[1])

    model.fc.eval()
    halp_fx.score(model, coupling, [(X, Y), (X, Y)], importance="taylor", loss=loss)
    assert modes == [False, False]
    assert [m.training for m in model.modules()] == [True, True, True, True, False]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_detector_with_losses_of_its_own():
    """Images and targets in lists, a dict of losses in train mode: torchvision's detectors."""
    model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3, reduce_tail=True, width_mult=0.25
    )
    targets = [{"boxes": torch.tensor([[10.0, 10.0, 50.0, 60.0]]), "labels": torch.tensor([1])} for _ in range(2)]
    batch = (list(torch.rand(2, 3, 64, 64)), targets)
    example = ([torch.rand(3, 64, 64)],)
    coupling = halp_fx.channel_groups(model, example)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    found = halp_fx.score(model, coupling, [batch], loss=lambda m, b: m.train()(*b))
    assert found.batches == 1
    assert not found.silent
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    with pytest.raises(SaliencyError, match=r"(?s)a tuple of 2 \(a list of 2.*loss=lambda model, batch"):
        halp_fx.score(model, coupling, [batch], F.cross_entropy)


def states():
    numpy = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), numpy[1].tolist(), numpy[2]


def loader(shuffle=False):
    return DataLoader(TensorDataset(X, Y), 2, shuffle=shuffle)


class Drawing:
    """Data that draws random numbers of every kind."""

    def __iter__(self):
        yield X + random.random() + np.random.rand() * torch.rand(1), Y


@pytest.mark.parametrize(
    "data", [loader(), loader(True), Drawing(), iter([(X, Y)])], ids=["loader", "shuffle", "own", "iterator"]
)
def test_random_states_stay(setting, data):
    before = states()
    halp_fx.prune(setting[0], 0.5, X, data=data, loss_fn=F.cross_entropy, latency=MacsCost(), steps=1, progress=False)
    assert states() == before
    halp_fx.score(*setting, [(X, Y)], F.cross_entropy)
    assert states() == before
    with pytest.raises(SaliencyError):
        halp_fx.prune(setting[0], 0.5, X, data=loader(True), loss_fn=lambda o, t: o, latency=MacsCost(), progress=False)
    assert states() == before


def test_random_numbers_of_training_are_drawn_once():
    """Training between steps goes on with the caller's stream, and the caller goes on after it."""
    drawn = []

    def train(_model):
        drawn.append((torch.rand(1).item(), random.random(), np.random.rand()))

    model = Net()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    wanted = [(torch.rand(1).item(), random.random(), np.random.rand()) for _ in range(3)]
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    halp_fx.prune(
        model, 0.4, X, data=loader(True), loss_fn=F.cross_entropy, latency=MacsCost(), steps=3, train_between=train,
        progress=False,
    )  # fmt: skip
    train(None)
    assert drawn == wanted


@pytest.mark.parametrize("mode", [True, False])
def test_the_result_is_in_the_modes_of_the_model(mode):
    model = Net().train(not mode)
    model.n.train(mode)
    before = [(name, module.training) for name, module in model.named_modules()]
    small = halp_fx.prune(
        model, 0.5, X, latency=MacsCost(), steps=2, train_between=lambda m: m.train(mode), branches=True, progress=False
    )
    assert [(name, module.training) for name, module in small.named_modules()] == before


def trains(small):
    small.train()
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    F.cross_entropy(small(X), Y).backward()
    assert all(p.grad is not None for p in small.parameters())
    optimizer.step()


@pytest.mark.parametrize("made", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("called", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("data", [False, True], ids=["magnitude", "taylor"])
def test_the_result_can_be_trained(made, called, data):
    with made():
        model = Net()
    extra = {"data": [(X, Y)], "loss_fn": F.cross_entropy} if data else {}
    with called():
        small = halp_fx.prune(model, 0.5, X, latency=MacsCost(), steps=2, train_between=trains, progress=False, **extra)
    trains(small)


def test_scores_inside_autocast(setting):
    want = halp_fx.score(*setting, [(X, Y)] * 2, F.cross_entropy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        setting[0](X)  # Fills the cache of cast weights.
        got = halp_fx.score(*setting, [(X, Y)] * 2, F.cross_entropy)
    assert got.batches == 2
    for group, expected in want.scores.items():
        assert np.corrcoef(got.scores[group], expected)[0, 1] > 0.9
        np.testing.assert_allclose(got.scores[group].sum(), expected.sum(), rtol=0.2)


class Recorded:
    """A callable of each kind; notes what it was given."""

    def __init__(self):
        self.seen = []

    def one(self, group):
        self.seen.append((group.size, None))
        return torch.rand(group.size)

    def two(self, group, model):
        self.seen.append((group.size, model))
        return (model.get_submodule(group.name).weight ** 2).flatten(1).sum(1)

    def keyword(self, group, *, model):
        return self.two(group, model)

    def with_option(self, group, power=2):
        assert power == 2
        return self.one(group)

    def with_model_by_default(self, group, model=None):
        return self.two(group, model)

    def __call__(self, group, model):
        return self.two(group, model)


@pytest.mark.parametrize("kind", ["one", "two", "keyword", "with_option", "with_model_by_default", "object"])
def test_importance_is_given_what_stands(kind):
    """Several steps: sizes are those of the network as it stands, and so is the model."""
    recorded = Recorded()
    importance = recorded if kind == "object" else getattr(recorded, kind)
    halp_fx.prune(
        Net(), 0.3, X, importance=importance, latency=MacsCost(), steps=3, round_to=1, progress=False
    )  # fmt: skip
    sizes = [size for size, _ in recorded.seen]
    assert len(sizes) == 6
    assert sizes[0] == 8 > min(sizes)
    models = [model for _, model in recorded.seen]
    if kind in ("one", "with_option"):
        assert models == [None] * 6
    else:
        assert [m.a.out_channels for m in models[::2]] == sizes[::2]
