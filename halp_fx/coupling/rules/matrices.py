"""Distances between rows, functions of whole matrices, and products of three tensors."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..algebra import Algebra, Call, Planes, Value, along, compact, simplify, varying, vector
from .channels import beside
from .contraction import product
from .elementwise import join
from .registry import register_rule

aten = torch.ops.aten


def distances(call: Call, algebra: Algebra) -> Planes:
    """`cdist`: (*, m, k) and (*, n, k) -> (*, m, n). Coupled as in a @ b^T; k is what a distance runs over."""
    a, b = call.args[:2]
    if any(a.ndim - 1 in varying(p) for p in a.planes):
        # Of both: rows of the second may be labelled, too, and they are no part of what is summed.
        algebra.sum_over(call, {0: a.ndim - 1, 1: b.ndim - 1})
        algebra.restrict(call, {a.ndim - 1})
    spec = replace(b.spec, shape=_swapped(b.shape), stride=_swapped(b.spec.stride))
    turned = replace(b, spec=spec, planes=tuple(p.transpose(-1, -2) for p in b.planes))
    return product(a, turned, call, algebra)


def _swapped(row: tuple[int, ...]) -> tuple[int, ...]:
    return (*row[:-2], row[-1], row[-2])


def pairs(call: Call, algebra: Algebra) -> Planes:
    """`pdist`: the distances between the rows of (n, k)."""
    x: Value = call.args[0]
    if any(varying(p) == (1,) for p in x.planes):
        algebra.restrict(call, {1})
    for plane in x.planes:
        if 0 in varying(plane):
            algebra.pin(plane, f"{call.where} takes every pair of what lies along this axis")
    return ()


def of_matrices(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """`inv`, `det`, `svd` and their kin: each matrix alone, so what lies in the leading dimensions is carried on."""
    values = [v for v in call.tensors() if v.ndim >= 2]
    batch = values[0].ndim - 2
    rows = []
    for value in values:
        kept = beside(value, {value.ndim - 2, value.ndim - 1}, call, algebra)
        spec = replace(value.spec, shape=value.shape[:-2], stride=value.spec.stride[:-2])
        rows.append(replace(value, spec=spec, planes=tuple(p[..., 0, 0] for p in kept), node=None))
    planes = join(rows, values[0].shape[:batch], call, algebra)
    results: list[Planes] = []
    for result in call.outputs:
        inner = (1,) * (len(result.shape) - batch) if result is not None else ()
        results.append(tuple(p.reshape(*p.shape, *inner).expand(result.shape) for p in planes) if result else ())
    return results if len(results) > 1 else results[0]


def cross(call: Call, algebra: Algebra) -> Planes:
    """`linalg.cross(a, b, dim)`: of three components along `dim`, which stay."""
    dim = int(call.kwargs.get("dim", -1)) % len(call.shape)
    values = [replace(v, planes=beside(v, {dim}, call, algebra)) for v in call.args[:2]]
    return join(values, call.shape, call, algebra)


def bilinear(call: Call, algebra: Algebra) -> Planes:
    """`_trilinear(a, w, b, expand_a, expand_w, expand_b, sums)`: all three get dimensions of length 1, are multiplied
    with broadcasting, and summed over `sums`."""
    sums = {int(d) for d in call.args[6]}
    values = []
    for value, expand in zip(call.args[:3], call.args[3:6], strict=True):
        shape, stride, planes = value.shape, value.spec.stride, value.planes
        for dim in sorted(int(d) for d in expand):
            shape, stride = (*shape[:dim], 1, *shape[dim:]), (*stride[:dim], 0, *stride[dim:])
            planes = tuple(p.unsqueeze(dim) for p in planes)
        values.append(replace(value, spec=replace(value.spec, shape=shape, stride=stride), planes=planes, node=None))
        for plane in planes if value.parameter else ():
            algebra.mark(plane, "consumer" if sums & set(varying(plane)) else "producer")
    shape = tuple(torch.broadcast_shapes(*(v.shape for v in values)))
    kept = []
    for plane in join(values, shape, call, algebra):
        over = sums & set(varying(plane))
        if over and set(varying(plane)) - over:
            plane = algebra.tie(plane, over, call, "contraction")
        for dim in sorted(sums, reverse=True):
            plane = plane.select(dim, 0)
        kept.append(plane)
    return tuple(p for p in kept if varying(p))


def embedded_diagonal(call: Call, algebra: Algebra) -> Planes:
    """`diag_embed(x, offset, dim1, dim2)`: (*, n) -> (*, n, n), zero off the diagonal: rows and columns are what lies
    along x."""
    x: Value = call.args[0]
    ndim = x.ndim + 1
    dims = sorted(int(d) % ndim for d in (call.arg(2, "dim1", -2), call.arg(3, "dim2", -1)))
    alone = [p for p in x.planes if varying(p) == (x.ndim - 1,) and not int(call.arg(1, "offset", 0))]
    kept = [along(vector(p, x.ndim - 1), dim, call.shape) for p in alone for dim in dims]
    others = replace(x, planes=tuple(p for p in x.planes if all(p is not q for q in alone)))
    for plane in beside(others, {x.ndim - 1}, call, algebra):
        rest = compact(plane.select(-1, 0))
        for dim in dims:
            rest = rest.unsqueeze(dim)
        kept.append(rest.expand(call.shape))
    return tuple(kept)


def diagonal(call: Call, algebra: Algebra) -> Planes:
    """`diagonal(x, offset, dim1, dim2)`: (*, n, m) -> (*, min(n, m)).

    Row i meets column i, and does so after pruning if they go together. Rows or columns alone stay: without some, the
    others would meet others; and so it is beside the main diagonal.
    """
    x: Value = call.args[0]
    rows, columns = (int(call.arg(i + 2, f"dim{i + 1}", i)) % x.ndim for i in (0, 1))
    sides = {d: [p for p in x.planes if {rows, columns} & set(varying(p)) == {d}] for d in (rows, columns)}
    met = not int(call.arg(1, "offset", 0)) and all(sides.values())
    kept = []
    for plane in x.planes:
        result = call.overload(plane, *call.args[1:], **call.kwargs)
        if not {rows, columns} & set(varying(plane)):
            kept.append(result)
        elif met and any(plane is p for p in sides[rows]):
            kept.append(result)
            for other in sides[columns]:
                across = call.overload(other, *call.args[1:], **call.kwargs)
                algebra.couple(result, across, call, "diagonal")
        elif not (met and any(plane is p for p in sides[columns])):
            algebra.pin(plane, f"{call.where} takes what lies where a row and a column meet")
    return tuple(algebra.rectangle(simplify(p)) for p in kept)


def block_diagonal(call: Call, algebra: Algebra) -> Planes:
    """`block_diag(blocks)`: each block loses rows and columns of its own. A row of numbers is one of one row."""
    blocks: list[Value] = call.args[0]
    kept = []
    for side in (0, 1):
        rows = []
        for block in blocks:
            dim = side + block.ndim - 2
            own = [p for p in block.planes if dim >= 0 and varying(p) == (dim,)]
            size = block.shape[dim] if dim >= 0 else 1
            rows.append(vector(own[0], dim) if own else torch.zeros(size, dtype=torch.int32, device="cpu"))
        kept.append(along(torch.cat(rows), side, call.shape))
    for block in blocks:
        for plane in block.planes:
            if len(varying(plane)) != 1:
                algebra.pin(plane, f"{call.where} lays matrices along a diagonal")
    return tuple(plane for plane in kept if plane.any())


def triangle(call: Call, algebra: Algebra) -> Planes:
    """`tril(x, k)` and `triu(x, k)`: what is kept of the last two dimensions follows their positions. Up to the main
    diagonal, or up to beside it, it is what it was without a row and the column of the same number."""
    x: Value = call.args[0]
    rows, columns = (d % x.ndim for d in (-2, -1))
    down, across = ([p for p in x.planes if varying(p) == (d,)] for d in (rows, columns))
    offset = int(call.arg(1, "diagonal", 0)) * (1 if call.op.startswith("triu") else -1)
    if x.shape[rows] != x.shape[columns] or not (len(down) == len(across) == 1) or offset not in (0, 1):
        return beside(x, {rows, columns}, call, algebra)
    algebra.couple(vector(down[0], rows), vector(across[0], columns), call, "diagonal")
    others = replace(x, planes=tuple(p for p in x.planes if p is not down[0] and p is not across[0]))
    return (*down, *across, *beside(others, {rows, columns}, call, algebra))


register_rule(aten.block_diag)(block_diagonal)
register_rule(aten.tril, aten.triu)(triangle)
register_rule(aten._euclidean_dist, aten._cdist_forward)(distances)
register_rule(aten._pdist_forward)(pairs)
register_rule(
    aten._linalg_svd,
    aten._linalg_det,
    aten._linalg_slogdet,
    aten._linalg_eigh,
    aten._linalg_solve_ex,
    aten.linalg_solve_triangular,
    aten.cholesky_solve,
    aten.linalg_eig,
    aten.linalg_lu,
    aten.linalg_inv_ex,
    aten.linalg_cholesky_ex,
    aten.linalg_qr,
    aten.linalg_matrix_exp,
    aten.linalg_eigvals,
    aten.linalg_lu_factor_ex,
)(of_matrices)
register_rule(aten.linalg_cross)(cross)
register_rule(aten._trilinear)(bilinear)
register_rule(aten.diag_embed)(embedded_diagonal)
register_rule(aten.diagonal)(diagonal)
