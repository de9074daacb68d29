"""Values at the grain of batches, through batch statistics: against finite differences, and where they do not apply."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import halp_fx
from halp_fx import Plan, Saliency
from halp_fx.pruning import session
from halp_fx.pruning.standing import value_of
from halp_fx.scoring.batchwise import in_turn, pieces


def network(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), norm(6), nn.ReLU(), nn.Conv2d(6, 5, 3), norm(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4)
    ).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.3, 0.5)
    return model.eval()


def data(count, size):
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 8, 8, generator=draw, dtype=torch.float64) for _ in range(count)]


def squares(model, batch):
    """A loss that nothing is drawn for: a mean over samples."""
    return model(batch).square().sum(1).mean()


def scores(model, batches, importance="batches", **given):
    coupling = halp_fx.channel_groups(model, batches[0][:2])
    return halp_fx.score(model, coupling, batches, importance=importance, **given).scores


def test_rows_are_derivatives_through_the_statistics_of_the_batch():
    model, batches = network(), data(5, 16)
    found = scores(model, batches, loss=squares)
    step = 1e-5
    for (name, own), norm in zip(sorted(found.items()), (model[1], model[4]), strict=True):
        expected = np.zeros(len(own))
        for channel in range(len(own)):
            for batch in batches:
                losses = []
                for sign in (1, -1):
                    with torch.no_grad():
                        before = norm.weight[channel].item(), norm.bias[channel].item()
                        norm.weight[channel] *= 1 + sign * step
                        norm.bias[channel] *= 1 + sign * step
                        model.train()
                        losses.append(float(squares(model, batch)) * len(batch))
                        model.eval()
                        norm.weight[channel], norm.bias[channel] = before
                derivative = (losses[0] - losses[1]) / (2 * step)
                expected[channel] += derivative**2 / len(batch) / 2 / len(batches)
        np.testing.assert_allclose(own, expected, rtol=1e-4, err_msg=name)


def test_a_large_batch_is_cut_into_pieces():
    (whole,) = data(1, 256)
    assert [n for _, n in pieces(whole)] == [64] * 4
    assert torch.equal(torch.cat([p for p, _ in pieces(whole)]), whole)
    assert [n for _, n in pieces(whole[:150])] == [75, 75]
    assert [n for _, n in pieces(whole[:90])] == [90]
    model = network()
    cut, apart = scores(model, [whole], loss=squares), scores(model, list(whole.split(64)), loss=squares)
    for name, own in cut.items():
        np.testing.assert_allclose(own, apart[name])


@pytest.mark.parametrize(
    ("norm", "count", "size"),
    [(lambda n: nn.GroupNorm(1, n), 5, 16), (nn.BatchNorm2d, 5, 8), (nn.BatchNorm2d, 3, 16)],
    ids=["no batch norms", "small batches", "few batches"],
)
def test_where_it_does_not_apply_sets_of_gates_are_scored(norm, count, size):
    model, batches = network(norm), data(count, size)
    found, sets = scores(model, batches), scores(model, batches, "fisher")
    for name, own in found.items():
        np.testing.assert_array_equal(own, sets[name])


class FailsInTraining(nn.BatchNorm2d):
    def forward(self, x):
        if self.training:
            raise RuntimeError("no statistics here")
        return super().forward(x)


def test_a_forward_that_fails_with_statistics_of_the_batch_is_scored_by_sets():
    model, batches = network(FailsInTraining), data(5, 16)
    found, sets = scores(model, batches), scores(model, batches, "fisher")
    for name, own in found.items():
        np.testing.assert_array_equal(own, sets[name])


def test_the_rest_of_a_loader_is_left_out():
    model, batches = network(), data(5, 16)
    one, other = scores(model, batches, loss=squares), scores(model, [*batches, batches[0][:1]], loss=squares)
    for name, own in one.items():
        np.testing.assert_array_equal(own, other[name])


def test_what_was_said_before_a_step_counts_half():
    now = Saliency(
        {"a": np.array([1.0, 3.0]), "b": np.array([4.0]), "c": np.ones(2), "d": np.ones(3)}, "fisher", memory=0.5
    )
    before = {"a": np.array([7.0, 5.0, 9.0]), "b": np.array([2.0]), "c": np.ones(4), "e": np.ones(1)}
    earlier = Saliency(before, "fisher", silent=("d",), memory=0.5)
    found = now.recalling(earlier, Plan({"a": (0, 2)}))
    expected = {"a": [4.0, 6.0], "b": [3.0], "c": [1.0, 1.0], "d": [1.0, 1.0, 1.0]}
    assert {name: own.tolist() for name, own in found.scores.items()} == expected
    forgetful = replace(now, memory=0.0)
    assert forgetful.recalling(earlier, Plan({"a": (0, 2)})) is forgetful


@pytest.mark.parametrize(("count", "shares"), [(5, 1), (8, 2), (12, 2)], ids=["few", "just enough", "more"])
def test_steps_remember_what_was_scored_before_and_take_turns(monkeypatch, count, shares):
    model, batches = network(), data(count, 16)
    inner, seen = session.scored, []

    def scored(network, *rest):
        found = inner(network, *rest)
        mine = batches[len(seen) % shares :: shares] if seen else batches
        own = halp_fx.score(network.model, found.coupling, mine, importance="batches").scores
        seen.append((found.saliency.scores, own, network.plan))
        return found

    monkeypatch.setattr(session, "scored", scored)
    options = {"data": batches, "importance": "batches", "latency": "macs", "steps": 4, "round_to": 1}
    # What was trained on the way is not begun anew, however far below the budget steps end.
    halp_fx.prune(model, 0.4, batches[0][:1], progress=False, train_between=lambda model: None, **options)
    assert len(seen) == 4
    mean = {}
    for scores, own, plan in seen:
        for name, found in own.items():
            rows = list(plan.get(name, range(len(found))))
            if name in mean:
                found = (found + mean[name][rows]) / 2
            np.testing.assert_allclose(scores[name], found, rtol=1e-6)
            mean.setdefault(name, np.zeros(len(found)))[rows] = found


def test_turns_go_through_the_pieces_that_count():
    batches = [torch.full((n, 1), float(i)) for i, n in enumerate((128, 64, 8, 32, 192, 64))]

    def turn(number, rows):
        taken, count = in_turn(batches, 5, rows, number)
        found = [(int(piece[0, 0]), len(piece)) for piece in taken]
        assert abs(len(found) - count) <= 1
        return found

    # Two pieces of the first batch, three of the fifth; the third is too small, and the sixth does not count.
    whole = [(0, 64), (0, 64), (1, 64), (3, 32), (4, 64), (4, 64), (4, 64)]
    assert turn(0, 7) == turn(1, 7) == whole, "seven rows are too few to share"
    assert turn(4, 8) == whole[::2]
    assert turn(5, 8) == whole[1::2]


def test_values_do_not_read_the_statistics_that_norms_keep():
    model, batches = network(), data(8, 16)
    found = scores(model, batches)
    for norm in (model[1], model[4]):
        norm.running_mean.fill_(torch.nan)
    for name, own in scores(model, batches).items():
        np.testing.assert_array_equal(own, found[name])


@pytest.mark.parametrize(
    ("given", "times"),
    [({}, 1), ({"importance": "fisher"}, 4), ({"compensate": False}, 1), ({"score_fn": lambda _: 1.0}, 5)],
    ids=["nobody reads them", "other values", "not compensated", "judged"],
)
def test_statistics_are_renewed_where_something_reads_them(monkeypatch, given, times):
    inner, seen = session.renew, []

    def counted(model, *rest, **more):
        seen.append(model)
        return inner(model, *rest, **more)

    monkeypatch.setattr(session, "renew", counted)
    batches = data(8, 16)
    options = {"data": batches, "latency": "macs", "steps": 4, "round_to": 1, "progress": False}
    halp_fx.prune(network(), 0.4, batches[0][:1], **options, **given)
    assert len(seen) == times


def test_the_model_stays_as_it_is():
    model = network()
    model[1].momentum, model[4].momentum = None, 0.3
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    scores(model, data(5, 16))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert (model[1].momentum, model[4].momentum) == (None, 0.3)


def test_what_is_not_finite_is_left_out():
    model, batches = network(), data(6, 16)
    broken = [*batches[:2], torch.full_like(batches[0], torch.nan), *batches[2:]]
    one, other = scores(model, batches, loss=squares), scores(model, broken, loss=squares)
    for name, own in one.items():
        np.testing.assert_allclose(own, other[name])
    with pytest.raises(halp_fx.SaliencyError, match="not finite"):
        scores(model, [torch.full_like(batches[0], torch.nan)] * 4, loss=squares)


@pytest.mark.parametrize(
    ("importance", "data", "recalibrate", "expected"),
    [
        (None, [], True, "batches"),
        ("auto", [], True, "batches"),
        (None, [], False, None),
        (None, None, True, None),
        ("fisher", [], True, "fisher"),
    ],
)
def test_what_is_left_open_is_scored_by_batches(importance, data, recalibrate, expected):
    assert value_of(SimpleNamespace(importance=importance, data=data, recalibrate=recalibrate)) == expected


@pytest.mark.parametrize("budget", [0.2, 0.6])
def test_prune_meets_a_budget_by_it(budget):
    model, batches = network().float(), [b.float() for b in data(5, 16)]
    given = {"data": batches, "latency": "macs", "round_to": 1, "progress": False}
    ways = {
        importance: halp_fx.prune(model, budget, batches[0][:1], importance=importance, **given).halp.plan
        for importance in (None, "batches")
    }
    assert ways[None] == ways["batches"]
