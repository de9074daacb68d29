"""pricing: a width problem and many choices of widths -> what each costs, in one lookup for all of them.

`WidthProblem.evaluate` prices one choice, layer by layer. Here the widths of all layers of all choices are one matrix
product, and their costs one call of `kernels.lookup`: a Triton launch on a GPU, its PyTorch twin on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..errors import ProblemError
from ..kernels import TableStack, lookup
from ..solver import WidthProblem
from ..types import Plan
from .lookup import stack_tables

Choice = Mapping[str, int] | Plan
"""Group -> width, or a plan. What it does not name is as wide as the problem allows."""

AT_ONCE = 1 << 24
"""Queries of one lookup: their widths and costs take 400 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class PriceList:
    """The tables of a width problem, packed. Build it once with `of`; it does not follow changes of the problem.

    Attributes:
        groups, branches, resources: names, in the order of the columns below.
        bounds: (2, groups): the smallest and the largest width.
        stack: the tables, on the device that the choices are priced on.
        scales: (2, groups, layers) float64: what one channel adds to the input and to the output width of a layer.
        offsets: (2, 1, layers).
        members: (layers, resources) float64: 1 where a table counts towards a resource.
        homes: (branches, layers) float64: 1 where a table goes with a branch.
        inside: (branches, groups) bool: groups that go with a branch.
    """

    groups: tuple[str, ...]
    branches: tuple[str, ...]
    resources: tuple[str, ...]
    bounds: torch.Tensor
    stack: TableStack
    scales: torch.Tensor
    offsets: torch.Tensor
    members: torch.Tensor
    homes: torch.Tensor
    inside: torch.Tensor
    _known: dict[bytes, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, problem: WidthProblem, device: torch.device | str = "cpu") -> PriceList:
        """The price list of a problem.

        Raises:
            ProblemError: the problem has no cost.
        """
        if not problem.costs:
            raise ProblemError(f"problem {problem.name!r} has no costs: there is nothing to add up")
        groups, costs = tuple(problem.groups), problem.costs
        branches = tuple(b.name for b in problem.branches)
        resources = tuple(dict.fromkeys([*problem.budgets, *(c.resource for c in costs)]))
        scales = np.zeros((2, len(groups), len(costs)))
        offsets = np.zeros((2, 1, len(costs)))
        for n, cost in enumerate(costs):
            sides = ((cost.inputs, cost.in_offset, cost.in_widths), (cost.output, cost.out_offset, cost.out_widths))
            for side, (terms, offset, grid) in enumerate(sides):
                offsets[side, 0, n] = offset if terms or len(grid) > 1 else grid[0]
                for term in terms:
                    scales[side, groups.index(term.group), n] += term.scale
        homes = np.zeros((len(branches), len(costs)))
        for n, home in problem.branch_of_cost().items():
            homes[branches.index(home), n] = 1
        inside = [[g in b.groups for g in groups] for b in problem.branches]
        return cls(
            groups, branches, resources,
            torch.tensor([[int(problem.groups[g].widths[end]) for g in groups] for end in (0, -1)], device=device),
            stack_tables(costs, device=device),
            torch.from_numpy(scales).to(device),
            torch.from_numpy(offsets).to(device),
            torch.tensor([[c.resource == r for r in resources] for c in costs], dtype=torch.float64, device=device),
            torch.from_numpy(homes).to(device),
            torch.tensor(inside, dtype=torch.bool, device=device).reshape(len(branches), len(groups)),
        )  # fmt: skip

    def rows(self, choices: Sequence[Choice]) -> tuple[torch.Tensor, torch.Tensor]:
        """Choices as `totals` takes them: widths, and dropped branches of those that are plans."""
        most = dict(zip(self.groups, self.bounds[1].tolist(), strict=True))
        widths = [
            [len(c[g]) if g in c else w for g, w in most.items()] if isinstance(c, Plan)
            else [int(c.get(g, w)) for g, w in most.items()]
            for c in choices
        ]  # fmt: skip
        gone = [[isinstance(c, Plan) and b in c.dropped for b in self.branches] for c in choices]
        device = self.stack.device
        shape = (len(choices), len(self.groups))
        dropped = torch.tensor(gone, dtype=torch.bool, device=device).reshape(len(choices), len(self.branches))
        return torch.tensor(widths, dtype=torch.int64, device=device).reshape(shape), dropped

    def totals(self, widths: torch.Tensor, dropped: torch.Tensor | None = None) -> torch.Tensor:
        """(choices, resources) float64: what each choice costs, as `WidthProblem.evaluate` has it.

        Args:
            widths: (choices, groups) whole numbers; those of groups in dropped branches may be anything.
            dropped: (choices, branches) bool; None: all stay.

        Raises:
            ProblemError: the shapes do not fit, or a width is below the smallest or above the largest of its group.
        """
        count = len(widths)
        if widths.ndim != 2 or widths.shape[1] != len(self.groups) or widths.is_floating_point():
            raise ProblemError(
                f"widths are {widths.dtype} of shape {tuple(widths.shape)}: give whole numbers, a row for each choice "
                f"and a column for each of {len(self.groups)} groups"
            )
        shape = (count, len(self.branches))
        if dropped is None:
            dropped = torch.zeros(shape, dtype=torch.bool, device=widths.device)
        if dropped.shape != shape or dropped.dtype is not torch.bool:
            raise ProblemError(
                f"dropped is {dropped.dtype} of shape {tuple(dropped.shape)}: give a bool for each of {count} choices "
                f"and {len(self.branches)} branches"
            )
        low, high = self.bounds
        gone = (dropped.double() @ self.inside.double()) > 0
        wrong = ((widths < low) | (widths > high)) & ~gone
        if bool(wrong.any()):
            row, column = (int(i) for i in wrong.nonzero()[0])
            raise ProblemError(
                f"choice {row}: width {int(widths[row, column])} of group {self.groups[column]!r} is outside of what "
                f"it may be, {int(low[column])} to {int(high[column])}"
            )
        # A group that is gone has any width that the tables know.
        widths = torch.where(gone, high, widths)
        step = max(1, AT_ONCE // self.stack.num_layers)
        parts = zip(widths.split(step), dropped.split(step), strict=True)
        found = [self._part(w, d) for w, d in parts]
        return torch.cat(found) if found else self.members.new_zeros(0, len(self.resources))

    def totals_again(self, widths: np.ndarray) -> np.ndarray:
        """As `totals`, for choices of which most are asked for time and again: what they cost is kept. No branch is
        dropped.

        Args:
            widths: (choices, groups) int64.
        """
        keys = [row.tobytes() for row in widths]
        new = [i for i, key in enumerate(keys) if key not in self._known]
        if new:
            costs = self.totals(torch.from_numpy(widths[new])).numpy()
            self._known.update((keys[i], row) for i, row in zip(new, costs, strict=True))
        return np.stack([self._known[key] for key in keys])

    def _part(self, widths: torch.Tensor, dropped: torch.Tensor) -> torch.Tensor:
        # Whole numbers in float64 are exact, and their products are fast.
        cin, cout = (widths.double() @ self.scales + self.offsets).int()
        layer = torch.arange(self.stack.num_layers, dtype=torch.int32, device=widths.device).expand_as(cin)
        times = lookup(self.stack, layer.contiguous(), cin.contiguous(), cout.contiguous())
        if self.branches:
            times = times * (1 - dropped.double() @ self.homes)
        return times @ self.members


def price(
    problem: WidthProblem, choices: Iterable[Choice], device: torch.device | str = "cpu"
) -> dict[str, np.ndarray]:
    """What many choices of widths cost: resource -> float64 array of shape (choices,).

    Args:
        problem: groups and cost tables (`build_problem`, or `WidthProblem.from_json`).
        choices: group -> width, or plans.

    Raises:
        ProblemError: a width is below the smallest or above the largest of its group.
    """
    prices = PriceList.of(problem, device)
    totals = prices.totals(*prices.rows(list(choices))).cpu().numpy()
    return dict(zip(prices.resources, totals.T.copy(), strict=True))
