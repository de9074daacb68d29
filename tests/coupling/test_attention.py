"""PyTorch's attention in every form: what is query, key and value, and who of them is the same tensor."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_equals_twin, equals_twin_closely, half_plan, random_plan, randomized
from torch import nn
from torch.nn import functional as F

import halp_fx

WIDTH, HEADS = 16, 4


class Attending(nn.Module):
    """`function(self, q, m)` of tokens q (2, 5, 16) and m (2, 9, 16), both from one image."""

    def __init__(self, function, width=WIDTH, **layers):
        super().__init__()
        self.function = function
        self.a, self.m, self.q = nn.Conv2d(3, 12, 1), nn.Conv2d(12, width, 1), nn.Embedding(5, WIDTH)
        self.c = nn.Linear(WIDTH, 3)
        for name, value in layers.items():
            setattr(self, name, value)

    def forward(self, x):
        m = self.m(self.a(x).relu()).flatten(2).transpose(1, 2)
        q = self.q.weight[None].repeat(m.shape[0], 1, 1)
        return self.c(self.function(self, q, m))


def crossed(batch_first, value=lambda m: m, width=WIDTH, **options):
    def function(s, q, m):
        q, m = (q, m) if batch_first else (q.transpose(0, 1), m.transpose(0, 1))
        y = q + s.t(q, m, value(m), need_weights=options.get("weights", True))[0]
        return y if batch_first else y.transpose(0, 1)

    more = {k: v for k, v in options.items() if k != "weights"}
    return Attending(function, width, t=nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, **more))


def masked(**options):
    def function(s, q, m):
        mask = torch.eye(5, 9, dtype=torch.bool)
        hidden = torch.zeros(len(m), 9, dtype=torch.bool)
        hidden[:, 7:] = True
        return s.t(q, m, m, attn_mask=mask, key_padding_mask=hidden)[0]

    return Attending(function, t=nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options))


def oneself(batch_first):
    return Attending(
        lambda s, q, m: m + s.t(m, m, m)[0] + q.mean(1, keepdim=True),
        t=nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first),
    )


def decoder(batch_first, **options):
    def function(s, q, m):
        return s.t(q, m) if batch_first else s.t(q.transpose(0, 1), m.transpose(0, 1)).transpose(0, 1)

    layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 24, batch_first=batch_first, **options)
    return Attending(function, t=nn.TransformerDecoder(layer, 2))


def encoder_and_decoder(batch_first, **options):
    def function(s, q, m):
        return s.t(m, q) if batch_first else s.t(m.transpose(0, 1), q.transpose(0, 1)).transpose(0, 1)

    return Attending(function, t=nn.Transformer(WIDTH, HEADS, 1, 1, 24, batch_first=batch_first, **options))


MODELS = {
    "self": lambda: oneself(True),
    "self, batch second": lambda: oneself(False),
    "cross": lambda: crossed(True),
    "cross, batch second": lambda: crossed(False),
    "cross, without weights": lambda: crossed(True, weights=False),
    "key is not value": lambda: crossed(True, lambda m: m + 0),
    "key is not value, batch second": lambda: crossed(False, lambda m: m.sin()),
    "other width of keys": lambda: crossed(True, width=8, kdim=8, vdim=8),
    "no bias": lambda: crossed(True, bias=False),
    "bias_k and bias_v": lambda: crossed(True, add_bias_kv=True),
    "a zero to attend to": lambda: crossed(True, add_zero_attn=True),
    "both": lambda: crossed(False, add_bias_kv=True, add_zero_attn=True),
    "masks": lambda: masked(),
    "masks and both": lambda: masked(add_bias_kv=True, add_zero_attn=True),
    "decoder": lambda: decoder(True),
    "decoder, batch second": lambda: decoder(False),
    "decoder, norm first": lambda: decoder(True, norm_first=True),
    "transformer": lambda: encoder_and_decoder(True),
    "transformer, batch second": lambda: encoder_and_decoder(False, activation="gelu"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_heads_and_embedding_shrink(name):
    torch.manual_seed(0)
    model = randomized(MODELS[name]()).eval()
    inputs = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, inputs)
    assert set(coupling.frozen) - {"q"} == {"c"}, coupling.frozen
    assert all(g.size >= HEADS for g in coupling.prunable), coupling.prunable
    small = assert_equals_twin(model, half_plan(coupling), inputs, coupling)
    attention = next(m for m in small.modules() if isinstance(m, nn.MultiheadAttention))
    assert attention.out_proj.weight.shape[1] == WIDTH // 2


class LinearHeads(nn.Module):
    """As EfficientViT: a row of ones beside the values of each head sums up the weights."""

    def __init__(self, heads, width, scales, row):
        super().__init__()
        total, self.width, self.row = 3 * heads * width, width, row
        self.qkv = nn.Conv2d(12, total, 1, bias=False)
        self.more = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(total, total, 3, padding=1, groups=total), nn.Conv2d(total, total, 1, groups=3 * heads)
            )
            for _ in range(scales)
        )
        self.out = nn.Conv2d(heads * width * (1 + scales), 4, 1)

    def forward(self, x):
        x = self.qkv(x)
        x = torch.cat([x, *(layer(x) for layer in self.more)], 1)
        b, _, h, w = x.shape
        x = x.reshape(b, -1, 3 * self.width, h * w)
        q, k, v = x[:, :, : self.width], x[:, :, self.width : 2 * self.width], x[:, :, 2 * self.width :]
        q, k, v = q.relu(), k.relu(), self.row(v)
        out = (v @ k.transpose(-1, -2)) @ q
        return self.out((out[:, :, :-1] / (out[:, :, -1:] + 1e-6)).reshape(b, -1, h, w)).mean((2, 3))


ROWS = {
    "one": lambda v: F.pad(v, (0, 0, 0, 1), value=1),
    "one of several calls": lambda v: F.pad(F.pad(v, (0, 0, 0, 1), value=1), (1, 0))[..., 1:],
    "before and after": lambda v: F.pad(v, (0, 0, 1, 1), value=1)[:, :, 1:],
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("scales", [0, 2])
def test_a_further_row_of_every_head(scales, row):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 1), LinearHeads(6, 4, scales, ROWS[row]))
    model, x = randomized(model).eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"0": 12, "1.qkv": 6}
    for seed in range(3):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
