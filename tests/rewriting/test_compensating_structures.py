"""compensate where a layer's inputs come through something: the least-squares twin, or kept and named; never worse."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from oracle import Net, randomized
from test_compensating import compensated, distances, images, recorded, repeated
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import halp_fx
from halp_fx import Plan
from halp_fx.rewriting.compensating import FURTHER


def mean(x):
    return x.mean((2, 3))


def attended(s, x):
    tokens = s.stem(x).flatten(2).transpose(1, 2)
    q, k = s.q(tokens), s.k(tokens)
    v = s.v(tokens).relu()
    return s.out(F.scaled_dot_product_attention(q, k, v)).mean(1)


def normed(s, x):
    return s.out(s.norm(s.stem(x).relu().permute(0, 2, 3, 1))).mean((1, 2))


def gated(s, x):
    return s.out(F.glu(s.stem(x), dim=1).movedim(1, -1)).mean((1, 2))


def conv(inputs, outputs, **options):
    return nn.Conv2d(inputs, outputs, 3, **options)


STRUCTURES = {
    "flatten": (
        lambda s, x: s.out(F.max_pool2d(s.stem(x).relu(), 3).flatten(1)),
        {"stem": conv(3, 8), "out": nn.Linear(32, 5)},
    ),
    "two consumers": (
        lambda s, x: torch.cat([s.out(mean(s.stem(x).relu())), s.other(mean(s.stem(x).relu()))], 1),
        {"stem": conv(3, 8), "out": nn.Linear(8, 3), "other": nn.Linear(8, 2)},
    ),
    "concat": (
        lambda s, x: s.out(torch.cat([mean(s.stem(x)), mean(s.b(x)), mean(x)], 1).relu()),
        {"stem": conv(3, 8), "b": conv(3, 6), "out": nn.Linear(17, 5)},
    ),
    "attention": (
        attended,
        {"stem": conv(3, 6, stride=2), "q": nn.Linear(6, 4), "k": nn.Linear(6, 4), "v": nn.Linear(6, 8),
         "out": nn.Linear(8, 5)},
    ),
    "layer norm": (normed, {"stem": conv(3, 8), "norm": nn.LayerNorm(8), "out": nn.Linear(8, 5)}),
    "glu": (gated, {"stem": conv(3, 16), "out": nn.Linear(8, 5)}),
    "scale": (
        lambda s, x: s.out((s.stem(x).relu() * s.gate(mean(x)).sigmoid()[..., None, None]).movedim(1, -1)).mean((1, 2)),
        {"stem": conv(3, 8), "gate": nn.Linear(3, 8), "out": nn.Linear(8, 5)},
    ),
}  # fmt: skip


def made(name, seed=0):
    forward, layers = STRUCTURES[name]
    model = Net(forward, **copy.deepcopy(layers)).double().eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=draw)
    return model


def kept_of(coupling, share=0.5):
    return {g.name: tuple(range(0, g.size, round(1 / share))) for g in coupling.prunable}


def best_rows(small, model, layer, x):
    """Mean squares of what misses of a linear layer's dense outputs: the least there is, and what is reached."""
    inputs, got = recorded(small, layer, x)
    wanted = recorded(model, layer, x)[1].flatten(0, -2)
    rows = inputs.flatten(0, -2)
    rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], 1)
    best = (rows @ torch.linalg.lstsq(rows, wanted, driver="gelsd").solution - wanted).square().mean()
    return float(best), float((got.flatten(0, -2) - wanted).square().mean())


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_consumer_is_the_least_squares_twin(name):
    model, x = made(name), images(96)
    coupling = halp_fx.channel_groups(model, x[:2])
    kept = kept_of(coupling)
    assert kept
    small, before, done = compensated(model, kept, x)
    assert not done.left
    for layer in (n for n in ("out", "other") if hasattr(model, n)):
        assert f"{layer}.weight" in [refit.weight for refit in done.layers]
        near_the_least(*best_rows(small, model, layer, x), best_rows(before, model, layer, x)[1])


def test_what_repeats_is_restored_behind_a_flatten_and_in_values():
    for name, layers in (("flatten", ["stem"]), ("attention", ["v"]), ("concat", ["stem", "b"])):
        model, x = made(name), images(96)
        for layer in layers:
            repeated(model.get_submodule(layer))
        coupling = halp_fx.channel_groups(model, x[:2])
        kept = {
            g.name: tuple(range(g.size // 2))
            for g in coupling.prunable
            if any(m.role == "producer" and m.axis.tensor.split(".")[0] in layers for m in g.members)
        }
        assert kept
        small, before, done = compensated(model, kept, x)
        assert not done.left
        got, without = distances(model, small, before)
        assert got < 1e-4, name
        assert without > 0.05, name


KEPT_AS_THEY_ARE = {
    "grouped, transposed": (
        lambda s, x: mean(s.out(s.stem(x).relu())), nn.ConvTranspose2d(8, 4, 2, groups=2), "conv_transpose2d",
    ),
    "shared": (
        lambda s, x: mean(s.out(s.stem(x).relu()) + s.out(s.stem(x.flip(2)).relu())), conv(8, 4), "several times",
    ),
    "bilinear": (
        lambda s, x: s.out(mean(s.stem(x)).relu(), mean(s.stem(x)).relu()), nn.Bilinear(8, 8, 3), "bilinear",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT_AS_THEY_ARE)
def test_what_cannot_be_folded_stays_and_is_named(name):
    forward, out, why = KEPT_AS_THEY_ARE[name]
    model, x = randomized(Net(forward, stem=conv(3, 8), out=out)).eval(), images(32)
    coupling = halp_fx.channel_groups(model, x[:2])
    kept = kept_of(coupling)
    if name == "bilinear" and not kept:
        pytest.skip("its inputs are frozen")
    small, before, done = compensated(model, kept, x)
    named = {weight: reason for weight, reason in done.left.items() if weight.startswith("out.")}
    assert named
    assert all(why in reason for reason in named.values())
    assert "could not be compensated" in done.notes[-1]
    for weight in named:
        assert torch.equal(small.get_parameter(weight), before.get_parameter(weight))


def crossed(s, x):
    """Queries of one layer, keys and values of another."""
    tokens, others = (layer(x).flatten(2).mT for layer in (s.stem, s.side))
    return s.last(s.out(tokens, others, others.relu(), need_weights=False)[0].mean(1))


def of_itself(s, x):
    tokens = s.stem(x).flatten(2).mT
    return s.last(s.out(tokens, tokens, tokens)[0].mean(1))


ATTENTIONS = {
    "of itself": (of_itself, {}),
    "of another": (crossed, {}),
    "of another width": (crossed, {"kdim": 6, "vdim": 6}),
    "more keys": (of_itself, {"add_bias_kv": True, "add_zero_attn": True}),
    "without biases": (of_itself, {"bias": False}),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_projections_of_an_attention_are_the_least_squares_twin(name):
    """Of the narrow attention, what each projection gets is written out here."""
    forward, options = ATTENTIONS[name]
    attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
    model = Net(
        forward, stem=conv(3, 8), side=conv(3, 6 if "kdim" in options else 8), out=attention, last=nn.Linear(8, 3)
    )
    model, x = randomized(model.double()).eval(), images(96)
    coupling = halp_fx.channel_groups(model, x[:2])
    kept = kept_of(coupling)
    assert any(m.axis.tensor == "out.out_proj.weight" for g in coupling.prunable if g.name in kept for m in g.members)
    small, before, done = compensated(model, kept, x)
    assert not [weight for weight in done.left if weight.startswith("out.")]
    fitted = [refit.weight for refit in done.layers if refit.weight.startswith("out.")]
    assert fitted[-1] == "out.out_proj.weight"
    assert fitted[:-1] == ["out.in_proj_weight"] * 3 or "in_proj" not in "".join(fitted[:-1])
    got = last_projection(small, x)
    # Outputs that are left, in the dense network.
    outputs = np.concatenate([
        np.sort(m.slots[list(kept[g.name])].ravel())
        for g in coupling.prunable for m in g.members
        if (m.axis.tensor, m.axis.dim) == ("out.out_proj.weight", 0)
    ])  # fmt: skip
    wanted = last_projection(model, x)[1][:, outputs]
    rows = got[0] if attention.out_proj.bias is None else torch.cat([got[0], torch.ones_like(got[0][:, :1])], 1)
    best = float((rows @ torch.linalg.lstsq(rows, wanted, driver="gelsd").solution - wanted).square().mean())
    near_the_least(best, *(float((y - wanted).square().mean()) for y in (got[1], last_projection(before, x)[1])))


def near_the_least(best, reached, without):
    assert best <= reached * (1 + 1e-9)
    assert reached <= max(1.05 * best, best + 0.02 * (without - best)) + 1e-12


def test_queries_keys_and_values_are_the_least_squares_twin():
    """They are all made of the tokens, the outputs of the first layer, which is not fitted."""
    model = randomized(Net(of_itself, stem=conv(3, 8), out=nn.MultiheadAttention(8, 2), last=nn.Linear(8, 3)).double())
    x = images(96)
    coupling = halp_fx.channel_groups(model.eval(), x[:2])
    kept = kept_of(coupling)
    small, before, _ = compensated(model, kept, x)
    (rows,) = (
        m.slots[list(kept[g.name])] for g in coupling.prunable for m in g.members
        if (m.axis.tensor, m.axis.dim) == ("out.in_proj_weight", 0)
    )  # fmt: skip
    with torch.no_grad():
        tokens, narrow = (net.stem(x).flatten(2).mT.flatten(0, 1) for net in (model, small))
        wanted = F.linear(tokens, model.out.in_proj_weight, model.out.in_proj_bias)[:, np.sort(rows.ravel())]
        reached, without = (
            float((F.linear(narrow, net.out.in_proj_weight, net.out.in_proj_bias) - wanted).square().mean())
            for net in (small, before)
        )
    ones = torch.cat([narrow, torch.ones_like(narrow[:, :1])], 1)
    best = float((ones @ torch.linalg.lstsq(ones, wanted, driver="gelsd").solution - wanted).square().mean())
    near_the_least(best, reached, without)
    assert reached < 0.9 * without


def last_projection(model, x):
    """(rows, inputs) and (rows, outputs) of the output projection of an attention."""
    seen = []
    handle = model.out.register_forward_hook(lambda _m, _a, result: seen.append(result[0]))
    with torch.no_grad():
        model(x)
        handle.remove()
        weight, bias = model.out.out_proj.weight.clone(), model.out.out_proj.bias
        shift = torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias.clone()
        alone = copy.deepcopy(model)
        eye = torch.eye(weight.shape[1], dtype=weight.dtype)
        alone.out.out_proj = type(alone.out.out_proj)(weight.shape[1], weight.shape[1]).double()
        alone.out.out_proj.weight.copy_(eye)
        alone.out.out_proj.bias.zero_()
        alone.out.register_forward_hook(lambda _m, _a, result: seen.append(result[0]))
        alone(x)
    result, inputs = (t.flatten(0, -2) for t in seen)
    torch.testing.assert_close(result, inputs @ weight.T + shift)
    return inputs, result


@pytest.mark.parametrize("form", ["half", "bfloat16", "channels last"])
def test_other_forms_of_weights(form):
    model = made("flatten")
    for layer in ("stem",):
        repeated(model.get_submodule(layer))
    kind = {"half": torch.float16, "bfloat16": torch.bfloat16}.get(form, torch.float32)
    layout = torch.channels_last if form == "channels last" else torch.contiguous_format
    model = model.to(kind).to(memory_format=layout)
    x = images(96).to(kind).to(memory_format=layout)
    coupling = halp_fx.channel_groups(model, x[:2])
    kept = {g.name: tuple(range(g.size // 2)) for g in coupling.prunable}
    small, before, done = compensated(model, kept, x)
    assert not done.left
    assert {p.dtype for p in small.parameters()} == {kind}
    assert small.stem.weight.is_contiguous(memory_format=layout)
    with torch.no_grad():
        want, got, without = (m(x).double() for m in (model, small, before))
    assert (got - want).norm() < {"half": 0.02, "bfloat16": 0.1}.get(form, 1e-4) * want.norm()
    assert (without - want).norm() > 0.1 * want.norm()


@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(seed=st.integers(0, 2**31 - 1), name=st.sampled_from(sorted(STRUCTURES)), count=st.integers(1, 12))
def test_never_further_on_the_data_than_without(seed, name, count):
    model, x = made(name, seed), images(count, seed=seed)
    coupling = halp_fx.channel_groups(model, x[:1])
    small, before, done = compensated(model, kept_of(coupling, (0.25, 0.5)[seed % 2]), x)
    with torch.no_grad():
        want = model(x)
        with_, without = ((m(x) - want).square().sum() for m in (small, before))
    assert with_ <= without * (1 + 1e-9)
    if any(why == FURTHER for why in done.left.values()):
        assert not done.layers
        assert all(torch.equal(a, b) for a, b in zip(small.parameters(), before.parameters(), strict=True))


def test_fits_that_do_not_add_up_are_taken_back(monkeypatch):
    """A fit that makes the network worse: weights and statistics are as without, and the report names the layers."""
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).double().eval()
    x = images(32)
    coupling = halp_fx.channel_groups(model, x[:2])
    kept = kept_of(coupling)
    real = halp_fx.rewriting.compensating.fitted

    def wrong(*args):
        fit = real(*args)
        return replace(fit, change=torch.full_like(fit.change, 5.0))

    monkeypatch.setattr("halp_fx.rewriting.compensating.fitted", wrong)
    small, before, done = compensated(model, kept, x)
    assert done.layers == ()
    assert set(done.left.values()) == {FURTHER}
    halp_fx.recalibrate(before, [x])
    assert all(
        torch.equal(a, b) for a, b in zip(small.state_dict().values(), before.state_dict().values(), strict=True)
    )
    assert "further from the dense one" in done.notes[-1]


def test_prune_never_compensates_to_the_worse():
    model, x = made("glu").float(), images(24).float()
    call = {"data": list(x.split(8)), "latency": "macs", "round_to": 1, "steps": 1, "progress": False}
    plain, better = (halp_fx.prune(model, 0.5, x[:1], compensate=c, **call) for c in (False, True))
    with torch.no_grad():
        off = [float((m(x) - model(x)).square().sum()) for m in (better, plain)]
    assert off[0] <= off[1]
    assert better.halp.plan == plain.halp.plan != Plan()


class Left(nn.Module):
    """Consumers of one layer that no weight can be folded into, and two that can."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.up = nn.ConvTranspose2d(8, 4, 2)
        self.twice = nn.Conv2d(8, 4, 1)
        self.scaled = parametrizations.weight_norm(nn.Conv2d(8, 4, 1))
        self.own = nn.Parameter(torch.randn(8, 4))
        self.plain = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        y = self.twice(x) + self.twice(x * x) + self.scaled(x) + self.plain(x)
        return self.up(x).mean((2, 3)) + y.mean((2, 3)) + x.mean((2, 3)) @ self.own


def test_consumers_that_stay_are_named():
    model = Left().double().eval()
    x = images()
    coupling = halp_fx.channel_groups(model, x[:2])
    name = next(g.name for g in coupling.prunable if g.size == 8)
    small, before, done = compensated(model, {name: (0, 1, 4, 6)}, x)
    assert [layer.weight for layer in done.layers] == ["plain.weight", "up.weight"]
    assert done.left["twice.weight"] == "it runs several times"
    assert done.left["own"] == "matmul takes its weight"
    assert any("scaled" in name and "weight_norm" in why for name, why in done.left.items())
    assert "own (matmul takes its weight)" in done.notes[-1]
    changed = {n for n, p in small.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    assert changed == {"plain.weight", "plain.bias", "up.weight", "up.bias"}
