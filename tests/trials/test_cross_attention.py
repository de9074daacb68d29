"""`nn.MultiheadAttention`, and its function, with other queries than keys: what embedding and heads follow."""

from __future__ import annotations

import pytest
import torch
from oracle import Net, equals_twin_closely, random_plan, randomized, relative_error
from torch import nn
from torch.nn import functional as F

import halp_fx


def few(s, z):
    """The first two tokens ask all of them."""
    return s.attention(z[:, :2], z, z, need_weights=False)[0]


def learnt(s, z):
    """Two learnt queries pool the tokens (attention pooling, a Perceiver's decoder)."""
    return s.attention(s.query.expand(len(z), -1, -1), z, z)[0]


def latents(s, z):
    """Learnt latents read tokens of another width (Perceiver), and keep what they were."""
    query = s.query[0].repeat(len(z), 1, 1)
    return query + s.attention(query, z, z)[0]


CASES = {
    "two heads": (few, 2, None, {"stem": 2, "attention.out_proj": 12}),
    "three heads": (few, 3, None, {"stem": 3, "attention.out_proj": 12}),
    "learnt": (learnt, 3, None, {"stem": 3, "attention.out_proj": 12}),
    "latents": (latents, 3, None, {"stem": 3}),
    "latents of another width": (latents, 3, 10, {"stem": 10, "attention": 3}),
}


@pytest.mark.parametrize("name", CASES)
def test_groups_and_twin(name):
    function, heads, width, groups = CASES[name]
    torch.manual_seed(0)
    model = Net(
        lambda s, x: s.head(function(s, s.stem(x))),
        stem=nn.Linear(5, width or 12),
        query=nn.Parameter(torch.randn(1, 2, 12)),
        attention=nn.MultiheadAttention(12, heads, kdim=width, vdim=width, batch_first=True),
        head=nn.Linear(12, 3),
    )
    model, x = randomized(model).eval(), torch.randn(3, 4, 5, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == groups, coupling.frozen
    for seed in range(2):
        small, twin = equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
    assert relative_error(twin(x), model(x)) > 1e-3
    small.train()(x).sum().backward()


class Pool(nn.Module):
    """The mean of all tokens asks them, by layers of its own (attention pooling of CLIP): the function compares the
    sizes of its weights before it runs anything."""

    def __init__(self, heads):
        super().__init__()
        self.heads = heads
        self.stem, self.position = nn.Linear(5, 12), nn.Parameter(torch.randn(5, 12))
        self.q, self.k, self.v, self.out = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x).transpose(0, 1)
        x = torch.cat([x.mean(0, keepdim=True), x]) + self.position[:, None]
        layers = {f"{name}_proj_weight": layer.weight for name, layer in (("q", self.q), ("k", self.k), ("v", self.v))}
        pooled, _ = F.multi_head_attention_forward(
            x[:1], x, x, x.shape[-1], self.heads, None, torch.cat([self.q.bias, self.k.bias, self.v.bias]),
            None, None, False, 0, self.out.weight, self.out.bias,
            training=self.training, need_weights=False, use_separate_proj_weight=True, **layers,
        )  # fmt: skip
        return self.head(pooled[0])


@pytest.mark.parametrize("heads", [2, 3])
def test_pooling_by_the_function(heads):
    torch.manual_seed(0)
    model, x = randomized(Pool(heads)).eval(), torch.randn(3, 4, 5, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"stem": heads, "out": 6}, coupling.frozen
    for seed in range(2):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_transformer_of_encoder_and_decoder(batch_first):
    """Each attention has its embedding for heads, the first of the decoder, too: what it reads equals it in size."""

    def forward(s, x):
        tokens, query = s.inner(s.stem(x).relu()).flatten(2).mT, s.query[None].repeat(len(x), 1, 1)
        if not batch_first:
            tokens, query = tokens.transpose(0, 1), query.transpose(0, 1)
        return s.head(s.transformer(tokens, query))

    torch.manual_seed(0)
    model = Net(
        forward, stem=nn.Conv2d(3, 32, 4, 4), inner=nn.Conv2d(32, 32, 1), query=nn.Parameter(torch.randn(7, 32)),
        transformer=nn.Transformer(32, 4, 2, 2, 64, batch_first=batch_first), head=nn.Linear(32, 5),
    )  # fmt: skip
    model, x = randomized(model).eval(), torch.randn(1, 3, 32, 32, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    four = [g for g in coupling.prunable if g.size == 4]
    assert [g.name for g in four] == ["inner"], coupling.frozen
    _, twin = equals_twin_closely(model, random_plan(coupling, 1), x, coupling)
    assert relative_error(twin(x), model(x)) > 1e-3
    assert halp_fx.prune(model, 0.4, x, latency="macs", progress=False).halp.met


def test_words_that_are_viewed_by_the_width_of_the_image():
    """As LTX has it: with other widths a view with -1 makes another number of words, for which the mask is padded, so
    that another operator runs. The reason is the view, and a tie."""

    def forward(m, x):
        y, mask = m.image(x), m.mask.expand(len(x), -1)
        words = m.words(x[:, :6]).view(len(x), -1, y.size(-1))
        if mask.shape[1] != words.shape[1]:
            mask = F.pad(mask, (0, words.shape[1]))
        return m.head(y + (m.key(words) * mask[:, :, None]).mean(1, keepdim=True))

    torch.manual_seed(0)
    layers = {"image": nn.Linear(4, 16), "words": nn.Linear(4, 16), "key": nn.Linear(16, 16), "head": nn.Linear(16, 3)}
    model, x = Net(forward, **layers), torch.randn(2, 9, 4, dtype=torch.float64)
    model.register_buffer("mask", torch.rand(1, 6))
    model = randomized(model).eval()
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"image": 16}, coupling.frozen
    equals_twin_closely(model, random_plan(coupling, 1), x, coupling)
