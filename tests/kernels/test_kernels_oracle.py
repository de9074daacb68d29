"""Float64 oracles and random cases for the kernel tests; the tests here hold the PyTorch twins to them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halp_fx import kernels
from halp_fx.errors import LatencyError, SaliencyError
from halp_fx.kernels import VARIANTS, Segment, SegmentLayout, TableStack, naive

ELEMENTS = {
    "taylor": lambda w, g: w * g,
    "taylor_signed": lambda w, g: w * g,
    "taylor_abs": lambda w, g: abs(w * g),
    "taylor_squared": lambda w, g: (w * g) ** 2,
    "taylor_sum_squared": lambda w, g: w * g,
    "l1": lambda w, g: abs(w),
    "l2": lambda w, g: w**2,
}
FINALS = {"taylor": np.abs, "taylor_sum_squared": np.square, "l2": np.sqrt}


def oracle_scores(layout, weights, grads, variant):
    """(scores, slack) in float64: slack bounds what float32 sums of these magnitudes may be off by."""
    total, size = np.zeros(layout.num_channels), np.zeros(layout.num_channels)
    for segment in layout.segments:
        grad = None if grads is None else grads[segment.tensor]
        if grad is None and VARIANTS[variant].needs_grad:
            continue
        w = weights[segment.tensor].detach().double().cpu().numpy()
        g = None if grad is None else grad.double().cpu().numpy()
        parts = np.moveaxis(ELEMENTS[variant](w, g), segment.dim, 0).reshape(len(segment.channels), -1)
        for slot, channel in enumerate(segment.channels):
            if channel >= 0:
                total[channel] += parts[slot].sum()
                size[channel] += abs(parts[slot]).sum()
    final = FINALS.get(variant, lambda value: value)
    slack = {"taylor_sum_squared": 2 * size**2, "l2": np.sqrt(size)}.get(variant, size)
    return final(total), 2e-6 * slack + 1e-30


def assert_scores(scores, layout, weights, grads, variant, before=0.0):
    expected, slack = oracle_scores(layout, weights, grads, variant)
    error = np.abs(scores.double().cpu().numpy() - before - expected)
    assert np.all(error <= slack + 2e-7 * abs(before)), (variant, error.max(), slack[error.argmax()])


def strided(kind, shape, dtype, generator):
    """A random tensor of that shape in one of the layouts that parameters are found in."""
    if kind == "channels_last" and len(shape) == 4:
        return torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
    if kind == "reversed":
        return torch.randn(shape[::-1], generator=generator).to(dtype).permute(*range(len(shape))[::-1])
    if kind == "sliced":
        wider = (*shape[:-1], 2 * shape[-1] + 1)
        return torch.randn(wider, generator=generator).to(dtype)[..., 1::2][..., : shape[-1]]
    if kind == "unaligned":
        flat = torch.randn(int(np.prod(shape)) + 1, generator=generator).to(dtype)
        return flat[1:].view(shape)
    if kind == "expanded":
        return torch.randn((1, *shape[1:]), generator=generator).to(dtype).expand(shape)
    return torch.randn(shape, generator=generator).to(dtype)


LAYOUTS = ("contiguous", "contiguous", "channels_last", "reversed", "sliced", "unaligned", "expanded")
SIZES = st.one_of(st.integers(1, 5), st.sampled_from([8, 9, 16, 17, 24]))


@st.composite
def networks(draw):
    """(layout, weights, grads): a few parameters of any rank, dtype and stride, scored along any
    dimensions."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    num_channels = draw(st.integers(1, 70))
    weights, grads, segments = [], [], []
    for number in range(draw(st.integers(1, 3))):
        shape = tuple(draw(st.lists(SIZES, min_size=1, max_size=4)))
        dtypes = st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64])
        kind, dtype = draw(st.sampled_from(LAYOUTS)), draw(dtypes)
        weight = strided(kind, shape, dtype, generator)
        same = draw(st.booleans())
        grad = strided(
            kind if same else draw(st.sampled_from(LAYOUTS)), shape, dtype if same else draw(dtypes), generator
        )
        weights.append(weight)
        grads.append(grad if draw(st.integers(0, 9)) else None)
        for dim in draw(st.lists(st.integers(0, len(shape) - 1), max_size=3)):
            channels = torch.randint(-1, num_channels, (shape[dim],), generator=generator).numpy()
            segments.append(Segment(number, dim, np.sort(channels) if draw(st.booleans()) else channels))
    return SegmentLayout.build(weights, segments, num_channels), weights, grads


def random_tables(seed, layers=5, widest=300, points=12):
    rng = np.random.default_rng(seed)
    tables = []
    for _ in range(layers):
        axes = [np.unique(rng.integers(1, widest, rng.integers(1, points))) for _ in range(2)]
        tables.append((axes[0], axes[1], rng.random((len(axes[1]), len(axes[0])))))
    return tables


def oracle_times(tables, layer, cin, cout):
    """Bilinear interpolation with clamping: np.interp along each axis, one query at a time."""
    times = np.full(len(layer), np.nan)
    for q, (number, x, y) in enumerate(zip(layer.tolist(), cin.tolist(), cout.tolist(), strict=True)):
        if 0 <= number < len(tables):
            in_widths, out_widths, values = tables[number]
            times[q] = np.interp(y, out_widths, [np.interp(x, in_widths, row) for row in values])
    return times


def random_queries(seed, tables, number, dtype=torch.int64):
    generator = torch.Generator().manual_seed(seed)
    layer = torch.randint(-1, len(tables) + 1, (number,), generator=generator)
    return layer.to(dtype), *(torch.randint(-5, 320, (number,), generator=generator).to(dtype) for _ in range(2))


def grid_queries(tables):
    """Every grid point of every table, and its time."""
    rows = [
        (n, x, y, values[o][i])
        for n, (in_widths, out_widths, values) in enumerate(tables)
        for i, x in enumerate(in_widths)
        for o, y in enumerate(out_widths)
    ]
    *queries, times = (np.array(column) for column in zip(*rows, strict=True))
    return [torch.from_numpy(q) for q in queries], torch.from_numpy(times)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(networks(), st.sampled_from(sorted(VARIANTS)))
def test_twin_equals_float64_oracle(network, variant):
    layout, weights, grads = network
    assert_scores(kernels.channel_scores(layout, weights, grads, variant), layout, weights, grads, variant)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_out_accumulates_in_place(variant, dtype):
    weight, grad = torch.randn(6, 5, 3, 3), torch.randn(6, 5, 3, 3)
    layout = SegmentLayout.build([weight], [Segment(0, 0, np.arange(6)), Segment(0, 1, np.arange(5) + 6)], 11)
    out = torch.zeros(11, dtype=dtype)
    for step in range(1, 4):
        assert kernels.channel_scores(layout, [weight], [grad], variant, out=out) is out
        torch.testing.assert_close(out / step, kernels.channel_scores(layout, [weight], [grad], variant).to(dtype))


def test_coupled_layers_are_summed_before_the_absolute_value():
    weights, grads = [torch.ones(2), torch.ones(2, 3)], [torch.tensor([3.0, -1.0]), -torch.ones(2, 3)]
    layout = SegmentLayout.build(weights, [Segment(0, 0, np.arange(2)), Segment(1, 0, np.arange(2))], 2)
    assert kernels.channel_scores(layout, weights, grads, "taylor").tolist() == [0.0, 4.0]
    assert kernels.channel_scores(layout, weights, grads, "taylor_abs").tolist() == [6.0, 4.0]


def test_chunks_of_a_large_parameter_add_up(monkeypatch):
    monkeypatch.setattr(kernels.naive, "CHUNK", 10_000)
    weight, grad = torch.randn(300, 2001), torch.randn(300, 2001)
    segments = [Segment(0, 0, np.arange(300)), Segment(0, 1, 300 + np.arange(2001) // 49)]
    layout = SegmentLayout.build([weight], segments, 341)
    assert_scores(kernels.channel_scores(layout, [weight], [grad], "taylor"), layout, [weight], [grad], "taylor")


@pytest.mark.parametrize("variant", VARIANTS)
def test_vectors_that_are_scored_at_once_are_as_one_by_one(variant):
    """To the last bit, with matrices between them, of several types, twice for the same channels, some without a
    gradient or elements."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(7,), (5,), (7, 5), (5,), (7,), (7,), (0,), (5,), (12,), (7, 2, 3), (7,)]
    types = [torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float32]
    types += [torch.float32] * 4
    weights = [torch.randn(s, generator=draw).to(t) for s, t in zip(shapes, types, strict=True)]
    grads = [torch.randn(s, generator=draw).to(t) for s, t in zip(shapes, types, strict=True)]
    if VARIANTS[variant].needs_grad:
        grads[7] = None
    own = {7: np.arange(7), 5: 7 + np.arange(5), 12: np.arange(12), 0: np.arange(0)}
    segments = [Segment(i, 0, own[shape[0]]) for i, shape in enumerate(shapes)]
    segments += [Segment(2, 1, own[5]), Segment(4, 0, np.array([3, -1, 3, 3, 0, 0, 11]))]
    layout = SegmentLayout.build(weights, segments, 13)
    wanted = torch.zeros(14, dtype=torch.float64)
    for index, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
        parts = sorted((s for s in segments if s.tensor == index), key=segments.index)
        if grad is not None and weight.numel():
            element = naive.ELEMENTS[VARIANTS[variant].element]
            sums = naive._sums_along(weight, grad, [s.dim for s in parts], element)
            for part in parts:
                wanted.index_add_(0, torch.from_numpy(part.channels % 14), sums[part.dim])
    wanted = naive.FINALS[VARIANTS[variant].final](wanted[:-1]).float()
    for _ in range(2):  # The second time from what was kept.
        assert torch.equal(kernels.channel_scores(layout, weights, grads, variant), wanted)
    assert wanted[12] == 0
    assert wanted[:12].all()


def test_nothing_scored_gives_zeros():
    layout = SegmentLayout.build([(3, 4)], [], 5)
    assert kernels.channel_scores(layout, [torch.ones(3, 4)], None, "l1").tolist() == [0.0] * 5


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        (Segment(2, 0, np.arange(3)), "there are 1 parameters"),
        (Segment(0, 2, np.arange(3)), "shape"),
        (Segment(0, 0, np.arange(4)), "3 integers"),
        (Segment(0, 0, np.arange(3.0)), "3 integers"),
        (Segment(0, 0, np.array([0, 1, 9])), r"legal are -1 \.\. 4"),
        (Segment(0, 0, np.array([0, -2, 1])), r"legal are -1 \.\. 4"),
    ],
    ids=["parameter", "dim", "length", "floats", "channel", "negative"],
)
def test_layout_says_what_does_not_fit(segment, message):
    with pytest.raises(SaliencyError, match=message):
        SegmentLayout.build([(3, 4)], [segment], 5)


def test_scores_say_what_does_not_fit():
    layout = SegmentLayout.build([(3, 4)], [Segment(0, 0, np.arange(3))], 3)
    weight = torch.ones(3, 4)
    for weights, grads, options, message in [
        ([weight], None, {}, "pass grads"),
        ([weight], [weight, weight], {}, "2 gradients"),
        ([weight, weight], None, {"variant": "l1"}, "1 parameters, 2"),
        ([weight], [weight.T], {}, r"\(4, 3\)"),
        ([weight.int()], None, {"variant": "l1"}, "int32"),
        ([weight], [weight.to_sparse()], {}, "sparse"),
        ([weight], [weight], {"variant": "hessian"}, "no saliency variant"),
        ([weight], [weight], {"out": torch.ones(2)}, "out must"),
        ([weight], [weight], {"out": torch.ones(3, dtype=torch.float16)}, "out must"),
    ]:
        with pytest.raises(SaliencyError, match=message):
            kernels.channel_scores(layout, weights, grads, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("points", [2, 12, 300], ids=lambda n: f"below{n}points")
def test_lookup_equals_numpy(dtype, points):
    tables = random_tables(points, widest=310, points=points)
    stack = TableStack.build(tables, dtype=dtype)
    queries = random_queries(0, tables, 2000)
    times = kernels.lookup(stack, *queries)
    assert times.dtype is dtype
    np.testing.assert_allclose(times, oracle_times(tables, *queries), rtol=1e-12 if dtype == torch.float64 else 3e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lookup_is_exact_on_grid_points(dtype):
    tables = random_tables(3)
    queries, times = grid_queries(tables)
    assert torch.equal(kernels.lookup(TableStack.build(tables, dtype=dtype), *queries), times.to(dtype))


def test_lookup_keeps_shape_and_takes_small_integers():
    tables = random_tables(4)
    queries = random_queries(1, tables, 24, torch.int16)
    stack = TableStack.build(tables)
    shaped = kernels.lookup(stack, *(q.view(2, 3, 4) for q in queries))
    assert shaped.shape == (2, 3, 4)
    assert torch.equal(shaped.flatten().nan_to_num(-1), kernels.lookup(stack, *queries).nan_to_num(-1))
    assert kernels.lookup(stack, *(q[:0] for q in queries)).shape == (0,)


def test_widths_beyond_the_grid_are_its_ends():
    widths = np.arange(1, 400)
    stack = TableStack.build([(widths, [7], widths[None, :].astype(float))])
    x = torch.arange(0, 450)
    times = kernels.lookup(stack, torch.zeros_like(x), x, torch.full_like(x, 1000))
    assert torch.equal(times, x.clamp(1, 399).double())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (([1, 1], [1], [[1.0, 2.0]]), "ascend"),
        (([1, 2.5], [1], [[1.0, 2.0]]), "whole"),
        (([], [1], [[]]), "row of whole"),
        (([1, 2], [1], [[1.0], [2.0]]), r"shape \(2, 1\), not \(1, 2\)"),
        (([1, 2], [1], [[1.0, float("nan")]]), "finite"),
        (([1, 2**28], [1], [[1.0, 2.0]]), "split"),
    ],
    ids=["repeated", "fraction", "empty", "transposed", "nan", "wide"],
)
def test_tables_say_what_does_not_fit(table, message):
    with pytest.raises(LatencyError, match=message):
        TableStack.build([table])


def test_queries_must_be_integers_of_one_shape():
    stack, one = TableStack.build(random_tables(5)), torch.ones(3, dtype=torch.int64)
    for queries in ((one, one.float(), one), (one, one, one[:2]), (one.bool(), one, one)):
        with pytest.raises(LatencyError):
            kernels.lookup(stack, *queries)
