"""LSTM, GRU and plain RNN, recorded as one operator each (see `tracing`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..algebra import Algebra, Call, Planes, Value, along, varying, vector
from .channels import channel_labels, couple_labels
from .registry import register_rule

aten = torch.ops.aten


def recurrent(call: Call, algebra: Algebra) -> list[Planes]:
    """`lstm(input, hx, params, has_biases, layers, dropout, train, bidirectional, batch_first)` and its kin.

    Per layer and direction `params` holds w_ih (gates * H, I), w_hh (gates * H, P), with biases b_ih and b_hh
    (gates * H,), and with a projection w_hr (P, H); else P = H. One attribute sets H for all layers and directions, so
    they keep the same hidden channels. Initial states are (layers * directions, N, P) and, for an LSTM, (…, H).
    """
    packed = call.overload._overloadname == "data"
    x, states, params, biases, layers, *_ = call.args[:1] + call.args[1 + packed :]
    directions = 2 if call.args[7 + packed] else 1
    states = list(states) if isinstance(states, list | tuple) else [states]
    # Steps stay: what is in front of the others is the batch only if that comes first.
    first = not packed and bool(call.args[8])
    inputs, carried = channel_labels(x, x.ndim - 1, call, algebra, batch=first)
    each = len(params) // (layers * directions)
    cells = [params[i : i + each] for i in range(0, len(params), each)]
    hidden, outputs = _cell_labels(cells[0], biases, call, algebra)
    for index, cell in enumerate(cells):
        own_hidden, own_outputs = _cell_labels(cell, biases, call, algebra)
        couple_labels(hidden, own_hidden, call, algebra, "layers")
        couple_labels(outputs, own_outputs, call, algebra, "layers")
        read = inputs if index < directions else outputs.repeat(directions)
        w_ih = _axis(cell[0], 1)
        couple_labels(read, w_ih, call, algebra, "input")
        algebra.mark(w_ih, "consumer")
    for state, labels in zip(states, (outputs, hidden), strict=False):
        own, beside = channel_labels(_batch_first(state), state.ndim - 1, call, algebra, batch=first)
        couple_labels(labels, own, call, algebra, "state")
        _couple_batches(carried((x.shape[0],)), beside((x.shape[0],)), call, algebra)
    results: list[Planes] = []
    for index, (spec, labels) in enumerate(
        zip(call.outputs, (outputs.repeat(directions), outputs, hidden), strict=False)
    ):
        if spec is None:
            results.append(())
            continue
        rows = carried(spec.shape) if not index else (p.transpose(0, 1) for p in carried(_swapped(spec.shape)))
        results.append((along(labels, len(spec.shape) - 1, spec.shape), *rows))
    return results


def _batch_first(state: Value) -> Value:
    """(layers * directions, N, H) -> (N, layers * directions, H)."""
    spec = replace(state.spec, shape=_swapped(state.shape), stride=_swapped(state.spec.stride))
    return replace(state, spec=spec, planes=tuple(p.transpose(0, 1) for p in state.planes))


def _swapped(row: tuple[int, ...]) -> tuple[int, ...]:
    return (row[1], row[0], *row[2:])


def _couple_batches(a: Planes, b: Planes, call: Call, algebra: Algebra) -> None:
    """What lies along the images of a sequence and of its states goes together; where only one has labels, it stays."""
    for plane in a if b else ():
        algebra.couple(plane, b[0], call, "state")
    for plane in () if a and b else (*a, *b):
        algebra.pin(plane, f"{call.where} has states that do not shrink along")


def _cell_labels(
    cell: Sequence[Value], biases: bool, call: Call, algebra: Algebra
) -> tuple[torch.Tensor, torch.Tensor]:
    """Couple the parameters of one layer and direction; returns the labels of its H hidden and P output channels."""
    w_ih, w_hh = cell[:2]
    gates = {"lstm": 4, "gru": 3}.get(call.op, 1)
    rows = _axis(w_ih, 0)
    algebra.mark(rows, "producer")
    algebra.mark(_axis(w_hh, 0), "producer")
    couple_labels(rows, _axis(w_hh, 0), call, algebra, "gates")
    for bias in cell[2:4] if biases else ():
        algebra.mark(_axis(bias, 0), "bias")
        couple_labels(rows, _axis(bias, 0), call, algebra, "bias")
    hidden = algebra.tie(rows.reshape(gates, -1), [0], call, "gates")[0]
    outputs = hidden
    if len(cell) > (4 if biases else 2):
        couple_labels(hidden, _axis(cell[-1], 1), call, algebra, "input")
        outputs = _axis(cell[-1], 0)
        algebra.mark(outputs, "producer")
        algebra.mark(_axis(cell[-1], 1), "consumer")
    couple_labels(outputs, _axis(w_hh, 1), call, algebra, "state")
    algebra.mark(_axis(w_hh, 1), "consumer")
    return hidden, outputs


def _axis(weight: Value, dim: int) -> torch.Tensor:
    """Labels along one dimension of a parameter."""
    found = next((p for p in weight.planes if varying(p) == (dim,)), None)
    return vector(found, dim) if found is not None else torch.zeros(weight.shape[dim], dtype=torch.int32, device="cpu")


register_rule(aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu)(recurrent)
