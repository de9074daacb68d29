"""Tensors that are no plain ones: subclasses, sparse and quantised ones, functions with own derivatives."""

from __future__ import annotations

import pytest
import torch
from oracle import half_plan, randomized
from test_bad_models import Chain, assert_right, coupled, image
from torch import nn

import halp_fx
from halp_fx import ModelError


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class Custom(Chain):
    def between(self, x):
        return Doubling.apply(self.b(x))


def test_custom_autograd_function():
    assert_right(randomized(Custom()), ["a", "b"])


class Labelled(torch.Tensor):
    """A subclass that only adds methods."""


class Wrapped(torch.Tensor):
    """A subclass that handles its operators itself."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        plain = torch.utils._pytree.tree_map(lambda v: v.inner if isinstance(v, cls) else v, (args, kwargs or {}))
        return func(*plain[0], **plain[1])


class Subclassing(Chain):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def between(self, x):
        x = self.b(x)
        return x * (x.as_subclass(Labelled) if self.kind is Labelled else Wrapped(torch.ones_like(x)))


def test_tensor_subclass_inside_a_forward():
    assert_right(randomized(Subclassing(Labelled)), ["a", "b"])


def test_unknown_tensor_subclass_inside_a_forward():
    """What it does to its operators is not seen: what meets it stays."""
    model = Subclassing(Wrapped).double()
    coupling = coupled(model)
    if "b" in coupling.frozen:
        assert coupling.frozen["b"]
    else:
        halp_fx.rewrite(model, half_plan(coupling), image(), coupling=coupling)(image())


def test_unknown_tensor_subclass_as_a_buffer():
    model = Chain()
    model.b.register_buffer("scale", Wrapped(torch.randn(8)))
    with pytest.raises(ModelError, match=r"b.scale \(shape \(8,\)\) is a"):
        halp_fx.channel_groups(model, image(torch.float32))


def test_sparse_parameter():
    model = Chain()
    model.b.bias = nn.Parameter(torch.randn(8).to_sparse(), requires_grad=False)
    with pytest.raises(ModelError, match=r"b.bias \(shape \(8,\)\) is sparse"):
        halp_fx.channel_groups(model, image(torch.float32))


class Mixing(Chain):
    """A sparse matrix over the channels, made in the forward."""

    def between(self, x):
        mixed = torch.sparse.mm(torch.eye(8, dtype=x.dtype).to_sparse(), x.transpose(0, 1).flatten(1))
        return mixed.view(8, 2, 8, 8).transpose(0, 1)


def test_sparse_tensor_inside_a_forward():
    coupling = assert_right(Mixing().double(), [])
    assert coupling.frozen["a"]


class Quantising(Chain):
    def between(self, x):
        return torch.quantize_per_tensor(self.b(x).float(), 0.1, 0, torch.qint8).dequantize().to(x.dtype)


def test_quantised_tensor_inside_a_forward():
    model = Quantising().double()
    coupling = coupled(model)
    assert {g.name for g in coupling.prunable} == {"a"}
    assert "no rule for operator quantize_per_tensor" in coupling.frozen["b"]


def test_quantised_model():
    class Int8(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("w", torch.quantize_per_tensor(torch.randn(8, 3, 1, 1), 0.1, 0, torch.qint8))

        def forward(self, x):
            return nn.functional.conv2d(x, self.w.dequantize())

    with pytest.raises(ModelError, match=r"w .* is quantised"):
        halp_fx.channel_groups(Int8(), image(torch.float32))
