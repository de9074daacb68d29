"""Shapes, strides and dtypes of `shapes.run` against PyTorch's own meta implementations."""

from __future__ import annotations

import pytest
import torch

from halp_fx.tracing import meta_shapes as shapes

aten = torch.ops.aten


def dense(*shape, dtype=torch.float32):
    return torch.empty(shape, device="meta", dtype=dtype)


LAYOUTS = {
    "dense": lambda *s: dense(*s),
    "double": lambda *s: dense(*s, dtype=torch.float64),
    "half": lambda *s: dense(*s, dtype=torch.float16),
    "channels last": lambda *s: dense(*s).to(memory_format=torch.channels_last) if len(s) == 4 else dense(*s),
    "reversed": lambda *s: dense(*s[::-1]).permute(*range(len(s) - 1, -1, -1)),
    "last two swapped": lambda *s: dense(*s[:-2], *s[:-3:-1]).transpose(-1, -2) if len(s) > 1 else dense(*s),
    "expanded first": lambda *s: dense(1, *s[1:]).expand(s),
    "part": lambda *s: dense(*s[:-1], s[-1] + 3)[..., : s[-1]],
    "every second": lambda *s: dense(2 * s[0], *s[1:])[::2],
    "expanded": lambda *s: dense(*s[:-1], 1).expand(s),
    "odd first stride": lambda *s: torch.empty_strided(s, (99991, *dense(*s).stride()[1:]), device="meta"),
}
SHAPES = [(2, 6, 5, 7), (1, 6, 5, 7), (1, 6, 1, 1), (3, 1, 4, 4), (2, 1, 1, 9), (4, 6), (1, 6), (6, 1), (5,), (2, 3, 8)]
SHAPES += [(1, 2, 3, 4, 5), (2, 1, 3, 1, 4), (1, 1, 1, 1), (0, 6, 5, 7), (2, 6, 0), ()]
SIZED = [s for s in SHAPES if s]

# Each makes the arguments from a first tensor, or returns None for one that does not suit.
ONE = {
    **{name: (getattr(aten, name).default, lambda x: (x,)) for name in shapes._ONE_TENSOR},
    **{f"{f} number": (f, lambda x: (x, 2.5)) for f in (aten.mul.Tensor, aten.add_.Tensor, aten.div.Scalar)},
    "mul whole number": (aten.mul.Scalar, lambda x: (x, 2)),
    "mul complex number": (aten.mul.Scalar, lambda x: (x, 2j) if x.dtype.itemsize > 2 else None),
    **{f"{name} number": (getattr(aten, name).Scalar, lambda x: (x, 0.01)) for name in shapes._COMPARISONS},
    "clamp_min": (aten.clamp_min.default, lambda x: (x, 1e-12)),
    "clamp": (aten.clamp.default, lambda x: (x, 0, 1.5)),
    "clamp from above": (aten.clamp.default, lambda x: (x, None, 6)),
    "square": (aten.pow.Tensor_Scalar, lambda x: (x, 2)),
    "root": (aten.pow.Tensor_Scalar, lambda x: (x, 0.5)),
    "power of a number": (aten.pow.Scalar, lambda x: (10000.0, x)),
    "power of a complex number": (aten.pow.Scalar, lambda x: (2j, x) if x.dtype.itemsize > 2 else None),
    "clone": (aten.clone.default, lambda x: (x,)),
    "_softmax": (aten._softmax.default, lambda x: (x, -1, False)),
    "_safe_softmax": (aten._safe_softmax.default, lambda x: (x, -1)),
    "mean": (aten.mean.dim, lambda x: (x, [-1])),
    "mean of first, kept": (aten.mean.dim, lambda x: (x, [0], True)),
    "mean of two, kept": (aten.mean.dim, lambda x: (x, [-1, 1 - x.dim()], True) if x.dim() > 2 else None),
    "mean of all": (aten.mean.dim, lambda x: (x, [])),
    "norm": (aten.linalg_vector_norm.default, lambda x: (x, 2.0, [-1], True)),
    "roll": (aten.roll.default, lambda x: (x, [1, 2], [0, 1]) if x.dim() > 1 else None),
    "roll flat": (aten.roll.default, lambda x: (x, [1])),
    "cat": (aten.cat.default, lambda x: ([x, x, dense(*x.shape, dtype=x.dtype)], -1)),
    "cat dense first": (aten.cat.default, lambda x: ([dense(*x.shape, dtype=x.dtype), x],)),
    "cat dense last": (aten.cat.default, lambda x: ([x, dense(*x.shape, dtype=x.dtype)], -1)),
    "cat of one": (aten.cat.default, lambda x: ([x],)),
    "stack": (aten.stack.default, lambda x: ([x, dense(*x.shape, dtype=x.dtype)], -1)),
    "stack first": (aten.stack.default, lambda x: ([x, x],)),
    "stack of two": (aten.stack.default, lambda x: ([x, x[..., :1]], 1)),
    "cat of two dtypes": (aten.cat.default, lambda x: ([x, x.to(torch.float64)], -1)),
}


def described(result):
    results = result if isinstance(result, tuple | list) else (result,)
    return [(tuple(r.shape), r.stride(), r.dtype, r.device.type) for r in results]


def outcome(function, *args):
    try:
        return described(function(*args))
    except (RuntimeError, IndexError, ValueError) as error:
        return type(error)


def agrees(func, args, kwargs=None):
    with torch.no_grad():
        expected = outcome(lambda: func(*args, **(kwargs or {})))
        assert outcome(shapes.run, func, args, kwargs or {}) == expected, [getattr(a, "shape", a) for a in args]
    return expected


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ONE)
def test_of_one_tensor(name, layout):
    func, make = ONE[name]
    for shape in SIZED:
        args = make(LAYOUTS[layout](*shape))
        if args is not None:
            agrees(func, args)


PAIRS = [((2, 6, 5, 7), (2, 6, 5, 7)), ((1, 6, 5, 7), (1, 6, 1, 1)), ((1, 6, 1, 1), (1, 6, 5, 7)), ((6,), (1, 1, 6))]
PAIRS += [((1, 4, 3, 5, 5), (1, 4, 1, 5, 5)), ((3, 1, 5), (3, 5, 1)), ((1, 9, 8), (1, 9, 8)), ((2, 3), (2, 1, 1, 3))]
PAIRS += [
    ((2, 1, 4), ()),
    ((), (2, 3)),
    ((4, 1, 6, 1), (6, 1)),
    ((2, 3), (3, 2)),
    ((1, 6, 1, 1), (1, 1)),
    ((0, 3), (3,)),
]


@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("first", LAYOUTS)
def test_of_two_tensors(first, second):
    for a, b in PAIRS:
        x, y = LAYOUTS[first if a else "dense"](*a), LAYOUTS[second if b else "dense"](*b)
        for func in (aten.add.Tensor, aten.mul_.Tensor, aten.div.Tensor):
            agrees(func, (x, y))
        agrees(aten.masked_fill.Scalar, (x, y.to(torch.bool), 0.0))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_samples_of_a_grid(layout):
    x = LAYOUTS[layout](2, 6, 5, 7)
    for count, dtype in ((2, x.dtype), (1, x.dtype), (2, torch.int64)):
        grid = dense(count, 3, 4, 2, dtype=dtype)
        agrees(aten.grid_sampler_2d.default, (x, grid, 0, 0, False))


def same_as_the_kernel(func, args):
    """Of one that PyTorch's meta implementation does not follow in all."""
    real = [torch.zeros_like(a, device="cpu") if isinstance(a, torch.Tensor) else a for a in args]
    rule = shapes._RULES[func](*args)
    assert [r[:3] for r in described(rule)] == [r[:3] for r in described(func(*real))]


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("half", "odd first stride")])
def test_layer_norm(layout):
    """It keeps odd strides of dimensions of size 1 on meta tensors only."""
    for shape in [s for s in SIZED if 0 not in s]:
        x = LAYOUTS[layout](*shape)
        for n in range(1, len(shape) + 1):
            for affine in (2 * (dense(*shape[-n:], dtype=x.dtype),), (None, None)):
                same_as_the_kernel(aten.native_layer_norm.default, (x, list(shape[-n:]), *affine, 1e-5))
    x = LAYOUTS["odd first stride"](1, 5, 6)
    assert shapes.run(aten.native_layer_norm.default, (x, [6], None, None, 1e-5), {})[0].stride() == (30, 6, 1)


@pytest.mark.parametrize("layout", ["dense", "double", "channels last"])
def test_batch_norm(layout):
    """It makes statistics in eval mode on meta tensors only."""
    for shape in [(2, 6, 5, 7), (1, 6, 5, 7), (4, 6), (2, 6, 3, 4, 5), (2, 6, 8)]:
        x = LAYOUTS[layout](*shape)
        same_as_the_kernel(aten.native_batch_norm.default, (x, *(4 * (dense(6, dtype=x.dtype),)), False, 0.1, 1e-5))


def test_add_of_a_tensor_elsewhere_is_no_case_for_a_rule():
    assert outcome(shapes.run, aten.add.Tensor, (dense(2, 3), torch.rand(2, 3)), {}) is RuntimeError


@pytest.mark.parametrize("layout", ["dense", "reversed", "part", "odd first stride", "double"])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "kernel", "groups"),
    [(1, 0, 1, 1, 1), (2, 1, 1, 3, 1), (2, 3, 1, 7, 2), (1, 2, 2, 3, 6), (3, 0, 1, 8, 1), (1, 0, 1, 9, 1)],
)
def test_convolution(layout, stride, padding, dilation, kernel, groups):
    for sides in ((9, 10), (9, 10, 8), (9,)):
        n = len(sides)
        x = LAYOUTS[layout](2, 6, *sides)
        weight = LAYOUTS["dense" if layout == "odd first stride" else layout](12, 6 // groups, *n * (kernel,))
        rest = (n * [stride], n * [padding], n * [dilation], False, n * [0], groups)
        for bias in (None, dense(12, dtype=x.dtype)):
            agrees(aten.convolution.default, (x, weight, bias, *rest))
        agrees(aten.convolution.default, (x[:, :4], weight, None, *rest))
        back = (n * [stride], n * [padding], n * [dilation], True, n * [0], groups)
        agrees(aten.convolution.default, (x, dense(6, 2, *n * (kernel,), dtype=x.dtype), None, *back))


@pytest.mark.parametrize("last", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize(
    ("kernel", "groups", "transposed"), [(1, 1, False), (3, 1, False), (3, 6, False), (3, 1, True)]
)
def test_convolution_keeps_channels_last_as_the_cpu_does(last, kernel, groups, transposed):
    # In three dimensions the CPU has a kernel of its own for one pixel, which knows no layouts.
    for dims, form in ((2, torch.channels_last), (3, torch.channels_last_3d))[: min(kernel, 2)]:
        x, weight = torch.rand(2, 6, *(5, 7, 4)[:dims]), torch.rand(6, 6 // groups, *dims * (kernel,))
        x, weight = (t.to(memory_format=form) if so else t for t, so in zip((x, weight), last, strict=True))
        rest = (None, dims * [1], dims * [kernel // 2], dims * [1], transposed, dims * [0], groups)
        real = aten.convolution.default(x, weight, *rest)
        meta = shapes.run(aten.convolution.default, (x.to("meta"), weight.to("meta"), *rest), {})
        assert described(meta)[0][:3] == described(real)[0][:3]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {}),
        ("LSTM", {"proj_size": 3, "bidirectional": True, "num_layers": 2}),
        ("LSTM", {"bias": False, "proj_size": 3}),
        ("GRU", {"num_layers": 2}),
        ("RNN", {"bidirectional": True, "bias": False}),
    ],
)
def test_recurrent(kind, options, batch_first):
    layer = getattr(torch.nn, kind)(6, 5, batch_first=batch_first, device="meta", **options)
    function = getattr(aten, {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}[kind]).input
    cells = layer.num_layers * (2 if layer.bidirectional else 1)
    settings = (layer.bias, layer.num_layers, 0.0, False, layer.bidirectional, batch_first)

    def run(steps, batch, inputs, hidden=5):
        states = [dense(cells, batch, layer.proj_size or 5)] + [dense(cells, batch, hidden)] * (kind == "LSTM")
        x = dense(batch, steps, inputs) if batch_first else dense(steps, batch, inputs)
        states = states if kind == "LSTM" else states[0]
        return agrees(function, (x, states, layer._flat_weights, *settings))

    assert len(run(4, 2, 6)) == (3 if kind == "LSTM" else 2)
    run(1, 1, 6)
    assert run(4, 2, 7) is RuntimeError
    assert kind != "LSTM" or run(4, 2, 6, hidden=4) is RuntimeError


@pytest.mark.parametrize("layout", ["dense", "reversed", "part", "half"])
def test_products(layout):
    make = LAYOUTS[layout]
    for m, k, n in ((3, 4, 5), (1, 4, 1), (3, 1, 5), (3, 0, 5), (0, 4, 5)):
        a, b = make(m, k), make(k, n)
        agrees(aten.mm.default, (a, b))
        agrees(aten.addmm.default, (dense(n, dtype=a.dtype), a, b))
        agrees(aten.bmm.default, (make(2, m, k), make(2, k, n)))
    agrees(aten.mm.default, (make(3, 4), make(5, 4)))
    agrees(aten.mm.default, (make(3, 4), dense(4, 5, dtype=torch.float64)))


def test_copies_and_views():
    for layout, make in LAYOUTS.items():
        for shape in SIZED:
            x = make(*shape)
            agrees(aten.clone.default, (x,), {"memory_format": torch.contiguous_format})
            if layout != "expanded":
                agrees(aten._unsafe_view.default, (dense(*shape), [-1] if 0 not in shape else [0]))
    x = dense(4, 6)
    view = shapes.run(aten._unsafe_view.default, (x, [2, 12]), {})
    assert view.untyped_storage()._cdata == x.untyped_storage()._cdata


@pytest.mark.parametrize(
    "name", [n for n in ONE if n not in ("mean of all", "roll flat") and "complex" not in n and n != "stack of two"]
)
def test_a_rule_does_it_for_a_plain_tensor(name):
    func, make = ONE[name]
    args = make(dense(2, 6, 5, 7))
    if name == "cat of two dtypes":
        assert shapes._RULES[func](*args) is None
    else:
        assert shapes._RULES[func](*args) is not None


def test_whole_numbers_and_values_go_to_pytorch():
    whole = torch.arange(6)
    assert torch.equal(shapes.run(aten.add.Tensor, (whole, whole), {}), 2 * whole)
    assert torch.equal(shapes.run(aten.cat.default, ([whole, whole],), {}), torch.cat([whole, whole]))
    assert described(shapes.run(aten.div.Tensor, (whole.to("meta"), 2), {}))[0][2] == torch.float32
