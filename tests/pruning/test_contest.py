"""prune(..., effort=): several ways and a judge, which sees what nobody else has seen; the table says who won."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from test_state import BATCHES, IMAGES, LABELS, Interrupted, model, trained
from torch.nn import functional as F

import halp_fx
from halp_fx import BudgetError, Plan, Report, SaliencyError
from halp_fx.pruning import contest, dropping, rehearsing, teaching, varying
from halp_fx.pruning.contest import parted
from halp_fx.pruning.rehearsing import Rehearsal
from halp_fx.scoring.divergence import Reference, shared_out

DATA = list(zip(IMAGES.split(4), LABELS.split(4), strict=True))


@pytest.fixture(scope="module")
def dense():
    """Trained a little, so that outputs differ."""
    net = model()
    torch.manual_seed(0)
    for _ in range(10):
        trained(net)
    return net.eval()


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(varying, "EVALUATIONS", 12)
    monkeypatch.setattr(rehearsing, "STEPS", 12)


def pruned(net, budget=0.35, **settings):
    settings = {"data": DATA, "latency": "macs", "round_to": 1, "progress": False} | settings
    return halp_fx.prune(net, budget, IMAGES[:1], **settings)


def test_the_closest_network_wins_and_the_table_says_so(dense, tmp_path):
    small = pruned(dense, effort="thorough", judge="untrained", compensate=False)
    report = small.halp
    names = [c.name for c in report.contenders]
    assert set(names) >= {"as asked", "larger steps", "more even", "values alone", "even widths"}
    distances = [c.distance for c in report.contenders]
    assert distances == sorted(distances)
    assert report.judged_by == "divergence on 4 samples, compensated"
    assert all(c.measured <= report.budget * (1 + 1e-9) for c in report.contenders)
    assert report.measured == report.contenders[0].measured
    assert "the one taken first" in str(report)
    (said,) = (note for note in report.notes if "was taken" in note)
    assert f"'{names[0]}' was taken" in said
    assert f"as asked {distances[names.index('as asked')]:.4g}" in said
    assert "compensated to be judged, and this network is not" in said
    assert all(f"<td>{name}</td>" in report.to_html(tmp_path / "page.html").read_text() for name in names)
    assert Report.from_json(report.to_json()) == report
    # The judge's word can be had again: of the network that came out, compensated though that was not asked for, on
    # what was held out.
    kept, held = parted(DATA)
    again = halp_fx.rewrite(dense, report.plan, IMAGES[:1])
    halp_fx.compensate(again, dense, kept, report.plan, IMAGES[:1])
    assert Reference.of(dense, held).distance(again) == pytest.approx(distances[0], rel=1e-3)


def test_every_way_is_what_prune_makes_of_it(dense, monkeypatch):
    seen = []
    inner = contest.walked

    def walked(*args):
        session = inner(*args)
        seen.append((args[1], session))
        return session

    monkeypatch.setattr(contest, "walked", walked)
    pruned(dense, effort="thorough", judge="untrained")
    kept, _ = parted(DATA)
    plans = {(r.effort, r.evenness, r.even, r.importance, bool(r.branches)): s.best.network.plan for r, s in seen}
    assert plans["normal", None, False, None, True] == pruned(dense, data=kept).halp.plan
    assert plans["normal", None, False, None, False] == pruned(dense, data=kept, branches=False).halp.plan
    assert plans["fast", None, False, None, True] == pruned(dense, data=kept, effort="fast").halp.plan
    assert plans["normal", None, True, "magnitude", False] == pruned(dense, data=None).halp.plan


def test_branches_may_go_and_need_not(dense):
    """What their loss costs after training no value tells, so the judge is asked."""
    small = pruned(dense, effort="thorough", judge="untrained", branches=True, compensate=False)
    by_name = {c.name: c.distance for c in small.halp.contenders}
    assert by_name["branches stay"] >= small.halp.contenders[0].distance
    kept, held = parted(DATA)
    alone = pruned(dense, data=kept, branches=False, compensate=False)
    halp_fx.compensate(alone, dense, kept, alone.halp.plan, IMAGES[:1])
    assert not alone.halp.plan.dropped
    assert Reference.of(dense, held).distance(alone) == pytest.approx(by_name["branches stay"], rel=1e-3)
    small = pruned(dense, effort="thorough", branches=False)
    assert "branches stay" not in {c.name for c in small.halp.contenders}


def test_a_way_that_cannot_reach_the_budget_is_left_out(dense):
    """Only without its branch is the network as small as this."""
    settings = {"branches": True, "min_keep": 8}
    with pytest.raises(halp_fx.InfeasibleError):
        pruned(dense, 0.35, **settings | {"branches": False})
    small = pruned(dense, 0.35, effort="thorough", **settings)
    assert small.halp.plan.dropped
    assert small.halp.met
    assert "branches stay" not in {c.name for c in small.halp.contenders}


def test_the_judge_sees_what_nobody_else_does(dense, monkeypatch):
    asked = []
    inner = contest.walked
    monkeypatch.setattr(contest, "walked", lambda m, request, *rest: asked.append(request) or inner(m, request, *rest))
    references = []
    monkeypatch.setattr(contest.Reference, "of", lambda *a: references.append(a[1]) or Reference(a[1], ()))
    monkeypatch.setattr(contest.Reference, "distance", lambda *a: float(len(references)))
    taught = []
    monkeypatch.setattr(contest.Rehearsal, "of", lambda *a: taught.append(a[1]) or Rehearsal(a[0], ()))
    pruned(dense, effort="thorough", branches=False)
    held = references[0]
    assert [id(b) for b in held] == [id(DATA[3])]
    assert all(id(b) not in {id(h) for h in held} for request in asked for b in request.data)
    assert sum(len(x) for x, _ in asked[0].data) == 20
    assert [id(b) for b in taught[0]] == [id(b) for b in asked[0].data]


def test_few_batches_are_cut():
    kept, held = parted(BATCHES)
    assert [len(x) for x, _ in kept] == [6, 6, 6]
    assert [len(x) for x, _ in held] == [2, 2, 2]
    joined = torch.cat([torch.cat([a, b]) for (a, _), (b, _) in zip(kept, held, strict=True)])
    assert torch.equal(joined, IMAGES)


def test_varied_widths_are_closer_on_what_the_search_looked_at(dense, monkeypatch):
    """From every way, not the best alone, which may leave nothing to find."""
    sessions = []
    inner = contest.walked
    monkeypatch.setattr(contest, "walked", lambda *a: sessions.append(inner(*a)) or sessions[-1])
    monkeypatch.setattr(contest, "varied", lambda *_: None)
    monkeypatch.setattr(contest, "_made_of_all", lambda *_: None)
    budget = pruned(dense, effort="thorough", judge="untrained").halp.budget
    monkeypatch.setattr(varying, "EVALUATIONS", 30)
    kept, _ = parted(DATA)
    compared, settled = shared_out(kept, varying.SAMPLES)

    def distance(plan):
        other = halp_fx.rewrite(dense, plan, IMAGES[:1])
        halp_fx.compensate(other, dense, settled, plan, IMAGES[:1])
        return Reference.of(dense, compared).distance(other), other

    found = 0
    for session in sessions:
        before, after = session.best.network.plan, varying.varied(session, kept)
        if after is None:
            continue
        found += 1
        (was, _), (now, network) = distance(before), distance(after)
        assert now < was
        assert halp_fx.MacsCost().total(halp_fx.channel_groups(network, IMAGES[:1])) <= budget * (1 + 1e-9)
        for name, rows in before.items():  # Channels go in the order in which they went.
            assert set(after[name]) <= set(rows) or set(rows) <= set(after[name])
    assert found >= 2


def test_the_network_wins_whose_trained_copy_is_closest(dense):
    """And that can be had again; the caller's random numbers and the dense network are as they were."""
    before, random = {n: t.clone() for n, t in dense.state_dict().items()}, torch.get_rng_state()
    small = pruned(dense, effort="thorough")
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(t, before[n]) for n, t in dense.state_dict().items())
    assert all(p.grad is None for p in small.parameters())
    contenders = small.halp.contenders
    names = [c.name for c in contenders]
    assert set(names) >= {"as asked", "branches stay", "branches go sooner", "batches in another order", "even widths"}
    assert "widths varied" not in names
    assert [c.tuned for c in contenders] == sorted(c.tuned for c in contenders)
    assert [c.distance for c in contenders] != sorted(c.distance for c in contenders)
    (said,) = (note for note in small.halp.notes if "was taken" in note)
    assert f"'{names[0]}' was taken, by squared Hellinger distance from the dense network of a trained copy" in said
    kept, held = parted(DATA)
    seen = kept[::-1] if names[0] == "batches in another order" else kept
    again = halp_fx.rewrite(dense, small.halp.plan, IMAGES[:1])
    halp_fx.compensate(again, dense, seen, small.halp.plan, IMAGES[:1])
    trained = Rehearsal.of(dense, kept).rehearsed(again)
    assert Reference.of(dense, held).bounded(trained) == pytest.approx(contenders[0].tuned, rel=1e-3)


def refuses(*_):
    raise RuntimeError("this operator has no backward")


def diverges(wanted, found):
    return (found[0] * torch.inf,) * 2


@pytest.mark.parametrize(("terms", "words"), [(refuses, "has no backward"), (diverges, "is nan in step 0 of 12")])
def test_what_cannot_be_trained_is_judged_as_it_stands(dense, monkeypatch, caplog, terms, words):
    monkeypatch.setattr(teaching, "terms", terms)
    report = pruned(dense, effort="thorough").halp
    assert all(c.tuned is None for c in report.contenders)
    assert [c.distance for c in report.contenders] == sorted(c.distance for c in report.contenders)
    assert words in caplog.text


def test_branches_go_sooner_where_their_loss_is_not_held_against_what_is_left(dense, monkeypatch):
    told = {}
    inner = dropping._losses_on

    def losses(compared, settled, network, request, *rest):
        found = told.setdefault(request.sooner, [])
        with monkeypatch.context() as patch:
            patch.setattr(dropping.Apart, "loss", lambda self, whole, of: found.append(of) or 1.0)
            return inner(compared, settled, network, request, *rest)

    monkeypatch.setattr(dropping, "_losses_on", losses)
    pruned(dense, effort="thorough")
    assert all(of == math.inf for of in told[True])
    assert all(of < math.inf for of in told[False])
    assert told[True]
    assert told[False]


def test_with_a_trainer_the_best_few_are_trained_once_more(dense):
    visits = []

    def train(network):
        visits.append(network.a.out_channels)
        trained(network)

    small = pruned(dense, effort="thorough", steps=2, train_between=train)
    contenders = small.halp.contenders
    assert "widths varied" not in [c.name for c in contenders]
    assert [c.tuned is not None for c in contenders] == [True] * 3 + [False] * (len(contenders) - 3)
    assert [c.tuned for c in contenders[:3]] == sorted(c.tuned for c in contenders[:3])
    assert "trained copy" in str(small.halp)
    # What comes out is not the copy that was trained: that is the caller's to do.
    assert len(visits) == len(contenders) - 1 + 3


def test_normal_is_the_default_and_fast_takes_fewer_steps(dense):
    normal, default, fast = pruned(dense, effort="normal"), pruned(dense), pruned(dense, effort="fast")
    assert normal.halp.plan == default.halp.plan
    assert len(fast.halp.steps) < len(default.halp.steps)
    assert fast.halp.met


def test_the_callers_score_is_asked_of_the_dense_network_and_the_winner(dense):
    small = pruned(dense, effort="thorough", score_fn=lambda m: float(m.a.out_channels))
    assert [score for _, score in small.halp.scores] == [16.0, float(small.a.out_channels)]


def test_an_interrupted_contest_goes_on(dense, tmp_path, monkeypatch):
    whole = pruned(dense, effort="thorough")
    inner = contest._judged
    calls = []

    def judged(*args):
        calls.append(args[0])
        if len(calls) == 3:
            raise Interrupted
        return inner(*args)

    with monkeypatch.context() as patch:
        patch.setattr(contest, "_judged", judged)
        with pytest.raises(Interrupted):
            pruned(dense, effort="thorough", state=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["as-asked", "larger-steps", "more-even", "search.json"]
    again = pruned(dense, effort="thorough", state=tmp_path)
    assert again.halp.contenders == whole.halp.contenders
    assert again.halp.plan == whole.halp.plan
    assert all(torch.equal(t, whole.state_dict()[n]) for n, t in again.state_dict().items())


BAD = {
    "unknown": ({"effort": "much"}, BudgetError, "effort='much' is not one of fast, normal, thorough"),
    "judge": ({"judge": "me"}, BudgetError, "judge='me' is not one of trained, untrained"),
    "no data": ({"effort": "thorough", "data": None}, SaliencyError, "pass data"),
    "published": ({"effort": "thorough", "solver": "mdp"}, BudgetError, "solver='mdp'"),
    "max_drop": ({"effort": "thorough", "score_fn": len, "max_drop": 1.0}, BudgetError, "max_drop"),
    "one image": ({"effort": "thorough", "data": [DATA[0][0][:1]]}, SaliencyError, r"1 batches of \[1\] samples"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name, dense):
    settings, error, words = BAD[name]
    before = {n: t.clone() for n, t in dense.state_dict().items()}
    with pytest.raises(error, match=words):
        pruned(dense, **settings)
    assert all(torch.equal(t, before[n]) for n, t in dense.state_dict().items())


def test_a_budget_that_is_met_needs_no_contest(dense):
    report = pruned(dense, 1.0, effort="thorough").halp
    assert report.contenders == ()
    assert report.plan == Plan()
    assert json.loads(report.to_json())["contenders"] == []


class Times(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def test_distances_of_every_kind(dense):
    other = halp_fx.prune(dense, 0.5, IMAGES[:1], latency="macs", progress=False)
    exact = Reference.of(dense, DATA)
    assert exact.distance(dense) == 0
    with torch.no_grad():
        wanted, found = (F.log_softmax(net(IMAGES).double(), 1) for net in (dense, other))
    mean = float(F.kl_div(found, wanted, log_target=True, reduction="batchmean"))
    assert exact.distance(other) == pytest.approx(mean, rel=1e-6)
    parts, whole = exact.apart(other), exact.apart(dense)
    each = F.kl_div(found, wanted, log_target=True, reduction="none").sum(1)
    torch.testing.assert_close(parts.sums, each)
    p, change = wanted.exp(), found - wanted
    bent = ((p * change.square()).sum(1) - (p * change).sum(1).square()) / 2
    torch.testing.assert_close(parts.bent, bent)
    apart = F.kl_div(p.mean(0).log().expand_as(p), wanted, log_target=True, reduction="batchmean")
    assert exact.told == pytest.approx(float(apart), rel=1e-6)
    assert parts.loss(whole, math.inf) == pytest.approx(float(bent.mean() + bent.std() / len(bent) ** 0.5))
    assert parts.loss(whole, 2 * mean) == pytest.approx(2 * parts.loss(whole, math.inf))
    assert parts.loss(whole, mean / 2) == pytest.approx(64 * parts.loss(whole, math.inf))
    assert parts.loss(parts, math.inf) == 0
    pictures = Reference.of(dense.a, [x for x, _ in DATA])
    assert pictures.told == math.inf
    assert pictures.kind == "squared error"
    assert pictures.distance(dense.a) == 0
    doubled = torch.nn.Sequential(dense.a, Times(2))
    squares = [(2 * dense.a(x) - dense.a(x)).detach().double().square() for x, _ in DATA]
    own = torch.cat([s.flatten(1).sum(1) / (2 * s.mean()) for s in squares])  # The error is as large as what is there.
    torch.testing.assert_close(pictures.apart(doubled).sums, own)
    lossy = Reference.of(dense, DATA, lambda m, batch: {"ce": F.cross_entropy(m(batch[0]), batch[1])})
    assert lossy.kind == "loss"
    with torch.no_grad():
        assert lossy.distance(dense) == pytest.approx(float(F.cross_entropy(dense(IMAGES), LABELS)), rel=1e-5)


def test_outputs_that_do_not_compare_are_named(dense):
    class Finder(torch.nn.Module):
        def __init__(self, net, bar):
            super().__init__()
            self.net, self.bar = net, bar

        def forward(self, x):
            y = self.net(x)
            return y[y > self.bar] if self.bar is not None else y.argmax(1)

    with pytest.raises(SaliencyError, match=r"shape \(120,\).*a tensor of shape \(0,\)\) for one batch"):
        Reference.of(Finder(dense, -1e9), [IMAGES]).distance(Finder(dense, 1e9))
    with pytest.raises(SaliencyError, match=r"what they put out, a tensor of shape \(24,\): pass loss="):
        Reference.of(Finder(dense, None), [IMAGES])


def test_varied_widths_may_be_wider_than_any_step_left(dense, monkeypatch):
    """The report then tells values of the dense network: those of the last step know no such widths."""
    wide = Plan({"a": range(16), "branch.0": [0, 3], "b": [5, 7]})
    inner = contest._judged

    def preferring(name, *rest):
        entry = inner(name, *rest)
        return replace(entry, judged=replace(entry.judged, distance=float(name != "widths varied")))

    monkeypatch.setattr(contest, "varied", lambda *_: wide)
    monkeypatch.setattr(contest, "_judged", preferring)
    small = pruned(dense, 0.55, effort="thorough", judge="untrained", compensate=True)
    assert small.halp.plan == wide
    assert small.halp.contenders[0].name == "widths varied"
    (group,) = (g for g in small.halp.groups if g.name == "a")
    assert group.lost.values[-1] == 0
    assert small.halp.met
    again = halp_fx.rewrite(dense, wide, IMAGES[:1])
    halp_fx.compensate(again, dense, DATA, wide, IMAGES[:1])
    halp_fx.recalibrate(again, DATA)
    torch.testing.assert_close(small(IMAGES), again(IMAGES))
