"""Structures of networks of 2024 and later: what may shrink in them, at random widths against the zeroed twin."""

from __future__ import annotations

import functools

import pytest
import torch
from oracle import Net, half_plan, random_plan, randomized
from torch import nn
from torch.nn import functional as F

import halp_fx


def image(function, width, **layers):
    """`function` of 16 channels, and a convolution of `width` behind it."""
    net = Net(lambda s, x: s.head(function(s, s.stem(x))), stem=nn.Conv2d(3, 16, 1), head=nn.Conv2d(width, 3, 1))
    for name, layer in layers.items():
        setattr(net, name, layer)
    return net


def pruned(model, *inputs):
    """What may shrink, by name, after three plans were compared with their twins."""
    torch.manual_seed(0)
    randomized(model).eval()
    inputs = inputs or (torch.randn(2, 3, 8, 8, dtype=torch.float64),)
    given = inputs if len(inputs) > 1 else inputs[0]
    coupling = halp_fx.channel_groups(model, given)
    for plan in (half_plan(coupling), *(random_plan(coupling, seed) for seed in (1, 2))):
        small, twin = (f(model, plan, given, coupling=coupling) for f in (halp_fx.rewrite, halp_fx.zero))
        with torch.no_grad():
            torch.testing.assert_close(small(*inputs), twin(*inputs), rtol=1e-9, atol=1e-9)
    return {g.name: g.size for g in coupling.prunable}


def repeated(s, x):
    """A shortcut that repeats channels, next to a layer (DC-AE)."""
    y = F.pixel_shuffle(x.repeat_interleave(s.repeats, dim=1), 2)
    return F.pixel_shuffle(s.conv(x), 2) + y


def test_channels_that_a_shortcut_repeats_before_they_are_shuffled():
    model = image(repeated, 16, conv=nn.Conv2d(16, 64, 3, padding=1))
    model.repeats = 4
    assert pruned(model) == {"stem": 16}
    model = image(repeated, 8, conv=nn.Conv2d(16, 32, 3, padding=1))
    model.repeats = 2
    assert pruned(model) == {"stem": 8}


class Modulated(nn.Module):
    """A layer makes rows, and a table of rows is added to them, which are taken one by one (PixArt, SANA)."""

    def __init__(self, width=16):
        super().__init__()
        self.patch, self.time = nn.Conv2d(3, width, 2, 2), nn.Linear(3, 3 * width)
        self.table = nn.Parameter(torch.randn(3, width))
        self.norm, self.mix, self.head = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, 4)

    def forward(self, x):
        time = self.time(x.mean((2, 3)))
        x = self.patch(x).flatten(2).transpose(1, 2)
        shift, scale, gate = (self.table[None] + time.reshape(len(x), 3, -1)).chunk(3, dim=1)
        return self.head(x + gate * self.mix(self.norm(x) * (1 + scale) + shift))


def test_rows_that_are_added_to_a_table_and_taken_one_by_one():
    assert pruned(Modulated(), torch.randn(2, 3, 8, 10, dtype=torch.float64)) == {"time": 16}


def shifted(s, x):
    """A share of the channels is shifted along time, and as much the other way (TSM)."""
    x = x.unflatten(0, (-1, 2))
    fold = x.shape[2] // s.share
    out = torch.zeros_like(x)
    out[:, :-1, :fold] = x[:, 1:, :fold]
    out[:, 1:, fold : 2 * fold] = x[:, :-1, fold : 2 * fold]
    out[:, :, 2 * fold :] = x[:, :, 2 * fold :]
    return s.conv(out.flatten(0, 1)).relu()


def test_an_attribute_that_is_a_share_makes_no_pieces_of_their_own():
    model = image(shifted, 12, conv=nn.Conv2d(16, 12, 1))
    model.share = 8
    # Four, two, and as much as is left.
    model.stem, model.conv = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 12, 1)
    assert pruned(model) == {"stem": 4, "conv": 12}


class Remembering(nn.Module):
    """Keys of which all but the last are turned in place (SAM 2)."""

    def __init__(self, width=16, heads=4):
        super().__init__()
        self.heads = heads
        self.patch, self.head = nn.Conv2d(3, width, 4, 4), nn.Linear(width, 4)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.register_buffer("turns", torch.rand(3, width // heads // 2, 2))

    def apart(self, x):
        return x.unflatten(2, (self.heads, x.shape[2] // self.heads)).transpose(1, 2)

    def turned(self, x):
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * torch.view_as_complex(self.turns)
        return torch.view_as_real(pairs).flatten(3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = (self.apart(f(x)) for f in (self.q, self.k, self.v))
        k[:, :, :3] = self.turned(k[:, :, :3])
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head((x + self.out(y)).mean(1))


def test_what_is_turned_in_place_through_a_view():
    assert pruned(Remembering()) == {"patch": 16, "q": 4}


class Focused(nn.Module):
    """Heads without softmax, and a layer for the positions of each head, which lie in the batch (FLatten)."""

    def __init__(self, width=16, heads=4):
        super().__init__()
        self.heads = heads
        self.patch, self.qkv, self.out = nn.Conv2d(3, width, 2, 2), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.local = nn.Conv2d(width // heads, width // heads, 3, padding=1, groups=width // heads)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = self.patch(x)
        b, c, h, w = x.shape
        x = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).reshape(b, h * w, 3, c).unbind(2)
        q, k, v = (t.reshape(b, h * w, self.heads, -1).transpose(1, 2) for t in (q.relu(), k.relu(), v))
        seen = q @ (k.transpose(2, 3) @ v) / (q @ k.mean(2, keepdim=True).transpose(2, 3) + 1e-6)
        local = self.local(v.reshape(b * self.heads, h * w, -1).transpose(1, 2).reshape(b * self.heads, -1, h, w))
        y = seen.transpose(1, 2).reshape(b, h * w, c) + local.reshape(b, c, h * w).transpose(1, 2)
        return self.head((x + self.out(y)).mean(1))


def test_heads_in_the_batch_that_go_whole():
    assert pruned(Focused(), torch.randn(2, 3, 8, 10, dtype=torch.float64)) == {"patch": 4}


class Stages(nn.Module):
    """Stages of one head, and of several, whose attention runs at one line of the program."""

    def __init__(self, widths=(8, 12, 16), heads=(1, 2, 4)):
        super().__init__()
        pairs = zip((3, *widths), widths, strict=False)
        self.patches = nn.ModuleList(nn.Conv2d(i, o, 2, 2) for i, o in pairs)
        attention = (nn.MultiheadAttention(w, h, batch_first=True) for w, h in zip(widths, heads, strict=True))
        self.blocks, self.head = nn.ModuleList(attention), nn.Linear(widths[-1], 4)

    def forward(self, x):
        for patch, block in zip(self.patches, self.blocks, strict=True):
            x = patch(x)
            t = x.flatten(2).transpose(1, 2)
            t = t + block(t, t, t, need_weights=False)[0]
            x = t.transpose(1, 2).unflatten(2, x.shape[2:])
        return self.head(x.mean((2, 3)))


def test_stages_of_one_head_and_of_several():
    assert pruned(Stages(), torch.randn(2, 3, 16, 24, dtype=torch.float64)) == {
        "patches.0": 8,
        "patches.1": 2,
        "patches.2": 4,
    }


class Single(nn.Module):
    """One head, beside gates; its width is half of the embedding's (iFormer)."""

    def __init__(self, width=16, heads=1, each=8):
        super().__init__()
        self.heads, self.each = heads, each
        self.q, self.k, self.v, self.gate = (nn.Conv2d(width, heads * each, 1) for _ in range(4))
        self.out = nn.Conv2d(heads * each, width, 1)

    def forward(self, x):
        q, k, v = (f(x).reshape(len(x), self.heads, self.each, -1).transpose(2, 3) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(len(x), -1, *x.shape[2:])
        return x + self.out(y * self.gate(x).sigmoid())


def test_a_single_head_and_the_embedding_go_by_themselves():
    assert pruned(image(lambda s, x: s.b(s.a(x)), 16, a=Single(), b=Single(heads=2))) == {
        "stem": 16,
        "a.q": 8,
        "b.q": 2,
    }


def test_derivatives_that_run_forward_through_a_layer():
    """Of whose bias nothing moves: that is added by an operator of PyTorch's own kind."""

    def slope(s, x):
        rows = x.mean((2, 3))
        return sum(torch.func.jvp(lambda r: s.b(s.a(r).tanh()), (rows,), (rows.cos(),)))[:, :, None, None]

    assert pruned(image(slope, 12, a=nn.Linear(16, 8), b=nn.Linear(8, 12))) == {"stem": 16, "a": 8, "b": 12}


class Routed(nn.Module):
    """Tokens that a score picks go through a layer and are written back (mixture of depths)."""

    def __init__(self, width=12, written=True):
        super().__init__()
        self.written = written
        self.patch, self.score, self.head = nn.Conv2d(3, width, 2, 2), nn.Linear(width, 1), nn.Linear(width, 4)
        self.deep = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 20), nn.SiLU(), nn.Linear(20, width))

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        score = self.score(x).squeeze(-1)
        picked = score >= score.median(1, keepdim=True).values
        if not self.written:
            return self.head(x.mean(1) + self.deep(x[picked]).mean(0))
        out = x.clone()
        out[picked] = x[picked] + self.deep(x[picked]) * score[picked].sigmoid().unsqueeze(-1)
        return self.head(out.mean(1))


def test_channels_of_tokens_that_values_pick():
    assert pruned(Routed()) == {"patch": 12, "deep.1": 20}
    assert pruned(Routed(written=False)) == {"patch": 12, "deep.1": 20}


def test_positions_that_values_pick_stay():
    model = Net(lambda s, x: s.a(x)[x[:, :1].expand(-1, 8, -1, -1) > 0].sum(), a=nn.Conv2d(3, 8, 1))
    coupling = halp_fx.channel_groups(model, torch.randn(2, 3, 8, 8))
    assert "picks elements by values that are not known" in coupling.frozen["a"]


class Pillars(nn.Module):
    """Rows with channels are written into an image, where values say (PointPillars): behind all of its channels, or
    channels lie on both sides of the positions."""

    def __init__(self, width=12, sides=False):
        super().__init__()
        self.width, self.sides = width, sides
        self.rows, self.head = nn.Linear(3, 2 * width if sides else width), nn.Conv2d(width, 4, 3)

    def forward(self, x):
        images = []
        for points in x.flatten(2).transpose(1, 2):
            rows, at = self.rows(points), (points[:, 0].sigmoid() * 24).long()
            if self.sides:
                canvas = rows.new_zeros(self.width, 24, 2)
                canvas[:, at] = rows.unflatten(1, (self.width, 2)).transpose(0, 1)
                images.append(canvas.mean(2))
            else:
                canvas = torch.zeros(self.width, 24, dtype=rows.dtype)
                canvas[:, at] = rows.t()
                images.append(canvas)
        return self.head(torch.stack(images).view(len(x), self.width, 4, 6))


@pytest.mark.parametrize("sides", [False, True])
def test_rows_that_are_written_behind_their_channels(sides):
    assert pruned(Pillars(sides=sides)) == {"rows": 12}


def columns(s, x):
    """Columns of a text's image become a sequence: pooled over rows, beside the channels (CRNN)."""
    return s.pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


# In the last as many as there are channels: an attribute, which follows.
@pytest.mark.parametrize("size", [(None, 1), (None, 2), (16, 1)])
@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d])
def test_channels_that_lie_where_pooling_keeps_as_many(pool, size):
    assert pruned(image(columns, 16, pool=pool(size))) == {"stem": 16}


def test_pooling_to_as_many_channels_by_a_constant():
    model = image(columns, 16)
    model.pool = lambda x: F.adaptive_avg_pool2d(x, output_size=(16, 1))
    assert pruned(model) == {}
    model.pool = functools.partial(F.adaptive_avg_pool2d, output_size=(16, 1))  # This one can follow.
    assert pruned(model) == {"stem": 16}


def test_parts_of_a_weight_whose_number_of_elements_alone_is_read():
    """`weight[0][0].numel()`: the size of a kernel."""

    def scaled(s, x):
        return F.conv2d(x, s.conv.weight * s.conv.weight[0][0].numel() ** -0.5)

    assert pruned(image(scaled, 12, conv=nn.Conv2d(16, 12, 3))) == {"stem": 16, "conv": 12}


class HalvesOfHeads(nn.Module):
    """Queries, keys and values beside each other, each cut into halves for two kinds of windows (CAT, DAT)."""

    def __init__(self, free, width=24, heads=3):
        super().__init__()
        self.free, self.heads = free, heads
        self.patch, self.qkv, self.out = nn.Conv2d(3, width, 2, 2), nn.Linear(width, 3 * width), nn.Linear(width, 4)

    def attended(self, qkv):
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in qkv)
        return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(*((b, n, 3, -1) if self.free else (b, -1, 3, c))).permute(2, 0, 1, 3)
        half = qkv.shape[-1] // 2
        return self.out(torch.cat([self.attended(qkv[..., :half]), self.attended(qkv[..., half:])], 2)).mean(1)


@pytest.mark.parametrize(("free", "shrinks"), [(True, {"patch": 24, "qkv": 3}), (False, {"patch": 3})])
def test_halves_of_a_grid_are_cut_where_each_is_half_as_wide(free, shrinks):
    """Every row of it keeps its channels in proportion; that each index must keep the same froze all three heads."""
    assert pruned(HalvesOfHeads(free)) == shrinks


def test_a_cut_into_more_pieces_than_are_unpacked_is_the_reason():
    """By the width of the input: the two layers go together. It was laid on what runs after the line that fails."""

    def gated(s, x):
        a, b = s.both(x).split(x.shape[1], 1)
        y = s.norm(s.beside(x)).relu()
        return a * b.sigmoid() + s.behind(y)

    layers = {"both": nn.Conv2d(16, 32, 1), "beside": nn.Conv2d(16, 8, 1), "norm": nn.BatchNorm2d(8)}
    shrinks = pruned(image(gated, 16, **layers, behind=nn.Conv2d(8, 16, 1)))
    assert shrinks == {"stem": 16, "beside": 8}
