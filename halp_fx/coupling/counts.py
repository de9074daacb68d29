"""Numbers that belong to a statistic: `F.normalize(x, dim=1) * g * x.shape[1] ** 0.5` is an RMS norm, and
`x.sum(1) / x.shape[1]` a mean, written in several operators; a weight that is divided by
`(w.var((1, 2, 3)) * w[0].numel()) ** 0.5` has rows of length one. Or to a product: `q @ k.mT / q.shape[-1] ** 0.5`.

As statistics over channels do (docs/rewriting.md), they run over the channels that stay, and so count these. Whether
the program computes the number from a size or has it as a constant, a trial shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from torch import fx

from ..tracing.graph import getitem, is_view, of, op, spot_of
from ..types import Extent

COUNTED = "counted"
"""What may be decided of such a number: it counts what the statistic runs over. Else it is the same at all widths."""

SUMMED = "summed"
"""The same of a product: the number counts what it sums over. Where that is, and the power ("summed below -0.5")."""

_SHIFTED = {"squeeze", "unsqueeze", "permute", "transpose", "_to_copy"}
_PASSED = _SHIFTED | {"clone", "expand", "mul", "div", "neg", "cat", "sum"}
_UP_TO_MAKER = _PASSED | {"add", "split", "select", "slice"}
_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "mv": 0}
"""At which argument the two factors of a product of matrices begin."""

_WHOLE, _OF_FACTORS = (-0.5, -1.0), (-0.5, -0.25, -1.0)
"""Powers of what is summed over that products, and factors of products, are scaled by."""

_MEANS = {"linalg_vector_norm": -0.5, "sum": -1.0, "var": 1.0, "var_mean": 1.0, "std": 0.5, "std_mean": 0.5}
"""Powers of how many elements there are, by which a sum becomes a mean, and a variance a sum of squares."""

_ROOTS = {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0}

_HELD_UP = {"clamp", "clamp_", "clamp_min", "clamp_min_", "add", "add_"}


@dataclass(frozen=True, slots=True)
class Count:
    """The number, in terms of the statistic that it belongs to.

    Attributes:
        source: what the statistic is of. dims: its dimensions that the statistic runs over.
        power: the number is this power of how many elements these have, less `correction` (1 in an unbiased variance).
    """

    source: fx.Node
    dims: tuple[int, ...]
    power: float
    correction: int = 0

    def freedom(self, shapes: Mapping[str, Sequence[Extent]], widths: Mapping[str, int]) -> int:
        """How many elements there are at other widths, less the correction."""
        return math.prod(shapes[self.source.name][d].at(widths) for d in self.dims) - self.correction

    def fits(self, number: float) -> bool:
        """Whether a number is this at the widths of its trace."""
        left = math.prod(of(self.source).one.shape[d] for d in self.dims) - self.correction
        return left > 0 and math.isclose(number, left**self.power, rel_tol=1e-9)

    def at(self, shapes: Mapping[str, Sequence[Extent]], widths: Mapping[str, int]) -> float:
        """The number at other widths."""
        left = self.freedom(shapes, widths)
        return float(left**self.power) if left else math.nan


def choice_at(node: fx.Node) -> str:
    """Under which name is noted what was decided of an operator's number."""
    return f"{spot_of(node)}#count"


def followed_at(node: fx.Node, choices: Mapping[str, str]) -> Count | None:
    """What the number of an operator counts, if that was decided."""
    choice = choices.get(choice_at(node), "")
    if choice == COUNTED:
        return count_at(node)
    number = _number_at(node) if choice.startswith(SUMMED) else None
    return _sums(node, number).get(choice) if number is not None else None


def count_at(node: fx.Node) -> Count | None:
    """What the number that a tensor is multiplied or divided by may count: its length along what a norm runs over that
    it is divided by (RMS norm), or that it is (root of a mean square), or what it is the sum over (mean)."""
    number = _number_at(node)
    if number is None:
        return None
    for source, dims, power in _statistics(node.args[0]):
        for correction in (0, 1) if abs(power) == 1 else (0,):
            count = Count(source, dims, _sign(node) * power, correction)
            if count.fits(number):
                return count
    return None


def sums_at(node: fx.Node) -> list[str]:
    """What may be decided of the number of a scaled product, where it counts nothing else: it counts what the product
    sums over that the number is multiplied with, or that one of its factors was multiplied with."""
    number = _number_at(node)
    if number is None or count_at(node) is not None:
        return []
    return list(_sums(node, number))


def _sums(node: fx.Node, number: float) -> dict[str, Count]:
    """What a number may count that belongs to a product, by what may be decided."""
    rows = {"above": (_summed_above(node), _WHOLE), "below": (_summed_below(node), _OF_FACTORS)}
    # Or what the layer reads that makes a factor, which is mostly as wide: `x.shape[1] ** -0.5`.
    rows |= {f"{place} read": (_read_by_makers(row), powers) for place, (row, powers) in rows.items()}
    found: dict[str, Count] = {}
    for place, (row, powers) in rows.items():
        for (source, dims), power in product(row, powers):
            count = Count(source, dims, _sign(node) * power)
            if count.fits(number):
                found.setdefault(f"{SUMMED} {place} {power}", count)
    return found


def _number_at(node: fx.Node) -> float | None:
    """The positive number that an operator multiplies or divides a tensor by."""
    if op(node).rstrip("_") not in ("mul", "div") or len(node.args) < 2 or not isinstance(node.args[0], fx.Node):
        return None
    number = node.args[1]
    known = isinstance(number, int | float) and not isinstance(number, bool) and number > 0
    return float(number) if known else None  # type: ignore[arg-type]


def _sign(node: fx.Node) -> int:
    return 1 if op(node).startswith("mul") else -1


def _summed_above(node: fx.Node) -> list[tuple[fx.Node, tuple[int, ...]]]:
    """Of a product that an operator is given: a factor, and its dimension that is summed over."""
    value = node.args[0]
    while isinstance(value, fx.Node) and value.args and (is_view(value) or op(value) in _SHIFTED):
        value = value.args[0]
    return _factor(value, 0) if isinstance(value, fx.Node) else []


def _summed_below(node: fx.Node) -> list[tuple[fx.Node, tuple[int, ...]]]:
    """As `_summed_above`, of the products that the result goes into, moved about and times other factors."""
    found: list[tuple[fx.Node, tuple[int, ...]]] = []
    left, seen = [node], {node}
    while left:
        value = left.pop()
        for user in value.users:
            for side in (0, 1):
                found += [f for f in _factor(user, side) if f[0] is value]
            if user not in seen and (is_view(user) or op(user).rstrip("_") in _PASSED):
                seen.add(user)
                left.append(user)
    return found


def _read_by_makers(factors: Sequence[tuple[fx.Node, tuple[int, ...]]]) -> list[tuple[fx.Node, tuple[int, ...]]]:
    """What layers read that make factors of products, and along which dimension channels lie in it."""
    found: list[tuple[fx.Node, tuple[int, ...]]] = []
    for factor, _ in factors:
        value: object = factor
        while isinstance(value, fx.Node) and value.args:
            name = op(value).rstrip("_")
            if name == "convolution" and isinstance(value.args[0], fx.Node):
                found.append((value.args[0], (1,)))
            elif name in _PRODUCTS:
                found += _factor(value, 0)
            elif is_view(value) or value.target is getitem or name in _UP_TO_MAKER:
                value = value.args[0]
                continue
            break
    return found


def _factor(node: fx.Node, side: int) -> list[tuple[fx.Node, tuple[int, ...]]]:
    """The left or the right factor of a product of matrices, and its dimension that is summed over."""
    first = _PRODUCTS.get(op(node).rstrip("_"))
    factor = node.args[first + side] if first is not None else None
    if not isinstance(factor, fx.Node):
        return []
    rank = len(of(factor).one.shape)
    return [(factor, (rank - 1 if side == 0 else max(rank - 2, 0),))]


def cancels(node: fx.Node) -> bool:
    """Whether a product with a number has no say in what is computed, but in gradients alone: `y` in
    `(x - y).detach() + y` with `y = x * number`, by which quantisers that are learnt scale those of their steps."""
    return op(node) == "mul" and bool(node.users) and all(_cancelled(node, user) for user in node.users)


def _cancelled(node: fx.Node, user: fx.Node) -> bool:
    """Whether a user of the product is such a sum, or what is left of the other factor without it in such sums."""
    if not _is_rest(user, node):
        return _is_sum(user, node)
    held = [n for n in user.users if op(n) == "detach"]
    return len(held) == len(user.users) == 1 and all(_is_sum(total, node) for total in held[0].users)


def _is_sum(total: fx.Node, product: fx.Node) -> bool:
    if op(total) != "add" or total.kwargs or not all(isinstance(term, fx.Node) for term in total.args):
        return False
    first, second = total.all_input_nodes[0], total.all_input_nodes[-1]
    return any(
        op(rest) == "detach" and _is_rest(rest.all_input_nodes[0], product) and _equal(again, product)
        for rest, again in ((first, second), (second, first))
    )


def _is_rest(node: fx.Node, product: fx.Node) -> bool:
    """Whether a node is the first factor of the product less the product."""
    if op(node) != "sub" or node.kwargs or len(node.all_input_nodes) != 2:
        return False
    whole, part = node.all_input_nodes
    return whole is product.args[0] is node.args[0] and _equal(part, product)


def _equal(node: fx.Node, product: fx.Node) -> bool:
    return (node.target, node.args) == (product.target, product.args)


def _statistics(value: object) -> list[tuple[fx.Node, tuple[int, ...], float]]:
    """Statistics that a value is made of by products and powers: of what, over which dimensions, and the power of their
    number of elements that makes a mean of a sum, or of a variance a sum of squares (weight standardisation, whose rows
    have length one)."""
    found = []
    left, seen = [(value, 1.0)], set[object]()
    while left:
        node, power = left.pop()
        if not isinstance(node, fx.Node) or node in seen:
            continue
        seen.add(node)
        name = op(node).rstrip("_")
        if node.op == "get_attr" and not of(node).constant and len(node.users) == 1:
            # A gain that was multiplied by the number first: what it then meets.
            left += [(beside, power) for beside in _beside(node)]
        elif is_view(node) or name in _SHIFTED:
            left.append((node.args[0], power))
        elif name == "mul":
            left += [(factor, power) for factor in node.args]
        elif name == "div":
            left += [(node.args[0], power), (node.args[1], -power)]
        elif name in _ROOTS:
            left.append((node.args[0], power * _ROOTS[name]))
        else:
            found += [(s, dims, power * own) for s, dims, own in _over(node)]
    return found


def _beside(gain: fx.Node) -> list[object]:
    """The other factors of the products that a parameter goes into, by itself or times numbers."""
    factors: list[object] = []
    node = gain
    while len(node.users) == 1:
        (user,) = node.users
        if op(user).rstrip("_") == "mul":
            others: list[object] = [a for a in user.args if a is not node]
            if any(isinstance(a, fx.Node) for a in others):
                return others
        elif not (is_view(user) or op(user) in _SHIFTED):
            break
        node = user
    return factors


def _over(value: object) -> list[tuple[fx.Node, tuple[int, ...], float]]:
    """Of a statistic, held away from zero: what it is of, along which dimensions, and its power (`_MEANS`)."""
    node = value
    while isinstance(node, fx.Node) and (is_view(node) or op(node) in _SHIFTED | _HELD_UP):
        if op(node) in ("add", "add_") and isinstance(node.args[1], fx.Node):
            return []
        node = node.args[0]
    if isinstance(node, fx.Node) and node.target is getitem and node.args[1] == 0:
        node = node.args[0]  # Variance and mean come together.
    if not isinstance(node, fx.Node) or op(node) not in _MEANS:
        return []
    source = node.args[0]
    assert isinstance(source, fx.Node)
    order, at = (node.args[1] if len(node.args) > 1 else 2, 2) if op(node) == "linalg_vector_norm" else (2, 1)
    dims = node.args[at] if len(node.args) > at else node.kwargs.get("dim")
    length = len(of(source).one.shape)
    if order != 2 or not isinstance(dims, list | tuple | None) or not length:
        return []
    return [(source, tuple(sorted(int(d) % length for d in dims or range(length))), _MEANS[op(node)])]
