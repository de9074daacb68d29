"""gathering: gradients of a training step -> what the channels of every group are worth, without a second forward.

After `backward()`, weight times gradient summed over a channel's norms (or over what produces it) is the derivative of
the batch's loss by a gate on the channel: a row with one number a channel and batch. The mean square over many batches
is the Fisher information of the gate, at the grain of batches instead of samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import nn

from ..arguments import is_number, shown
from ..coupling.branches import output_groups
from ..coupling.residual import find_branches
from ..errors import TrainingError
from ..kernels import SegmentLayout, channel_scores
from ..scoring.gates import places_of
from ..scoring.scored import Key, Weights, WeightSlots, as_real
from ..types import ChannelGroup, Coupling, Plan

Look = tuple[torch.Size, torch.dtype, torch.device]
SINCE = " when the Pruner was made, or last cut"

KEPT = 160
"""Rows that are kept, of the last batches; more, where more lie between two steps of pruning."""


@dataclass(slots=True, eq=False)
class Gathered:
    """Rows of one network at its present widths.

    Attributes:
        model: whose rows they are.
        groups: whose channels are the columns, one group after the other.
        keys, layout: the tensors that rows are made of, and which of their slots are of which channel.
        parameters: of the model, by name.
        looks: what each of these is: shape, dtype and device.
        most: how many rows are kept.
        rows: float32, of shape (channels,), the last ones.
    """

    model: nn.Module
    groups: tuple[ChannelGroup, ...]
    keys: list[Key]
    layout: SegmentLayout
    parameters: Mapping[str, nn.Parameter]
    looks: Mapping[str, Look]
    most: int = KEPT
    rows: list[torch.Tensor] = field(default_factory=list)
    # Held, so that nothing else gets their place in memory.
    _modules: list[nn.Module] = field(init=False)
    _tables: list[Mapping[str, Any]] = field(init=False)
    _known: list[int] = field(init=False)
    _looks: list[Look] = field(init=False)

    def __post_init__(self) -> None:
        self._modules = list(self.model.modules())
        self._tables = [table for module in self._modules for table in (module._parameters, module._modules)]
        self._known, self._looks = self._ids(), list(self.looks.values())

    @classmethod
    def of(
        cls,
        model: nn.Module,
        coupling: Coupling,
        branches: Sequence[str] = (),
        readers: bool = False,
        most: int = KEPT,
    ) -> Gathered:
        """None yet, of a network.

        Args:
            coupling: of the model.
            branches: that may go: what they add is scored, too.
            readers: score the weights that read a channel, and not those that make it: these have a gradient also while
                the channel is masked.
            most: how many are kept.
        """
        groups = (*coupling.prunable, *output_groups(find_branches(coupling).among(branches) if branches else ()))
        weights, parameters = Weights.of(model, coupling), dict(model.named_parameters())

        def chosen(group: ChannelGroup) -> list[WeightSlots]:
            read = _read(group, parameters) if readers else []
            return read or places_of(group, weights, frozenset(), parameters)

        keys, layout = weights.layout(groups, chosen)
        return cls(model, groups, keys, layout, parameters, {name: _look(p) for name, p in parameters.items()}, most)

    @property
    def columns(self) -> dict[str, slice]:
        ends = list(accumulate((g.size for g in self.groups), initial=0))
        return {g.name: slice(ends[i], ends[i + 1]) for i, g in enumerate(self.groups)}

    def check_same(self) -> None:
        """Raises TrainingError if something else has changed the model since: rows would be of parameters that do
        nothing any more, and a cut would be of places that are others now."""
        if self._same():
            return
        now = dict(self.model.named_parameters())
        for name in {**self.parameters, **now}:
            known, found = self.parameters.get(name), now.get(name)
            if known is not found:
                what = "is new" if known is None else "is no longer there" if found is None else "is another parameter"
                raise TrainingError(
                    f"{name} {what}{' than' if known is not None and found is not None else ''}{SINCE}: a layer was "
                    "replaced, or weights were loaded with assign=True. Change the network first, then make its "
                    "optimizer and the Pruner"
                )
            before, look = self.looks[name], _look(self.parameters[name])
            if look[0] != before[0]:
                raise TrainingError(
                    f"{name} has shape {tuple(look[0])} now, and had {tuple(before[0])}{SINCE}: something else has cut "
                    "the network (another Pruner, or rewrite in place). One network can have one Pruner at a time"
                )
            if look != before:
                raise TrainingError(
                    f"{name} is {look[1]} on {look[2]} now, and was {before[1]} on {before[2]}{SINCE}, where the "
                    "network was timed: make the Pruner after model.to(...), and call finish before the next"
                )

    def _same(self) -> bool:
        """Whether the model's modules and parameters are the same, and these what they were; told in a fraction of the
        time that names take, as it is asked in every step of training."""
        return self._ids() == self._known and [_look(p) for p in self.parameters.values()] == self._looks

    def _ids(self) -> list[int]:
        return [id(value) for table in self._tables for value in table.values()]

    @property
    def trained(self) -> bool:
        """Whether anything that rows are made of is trained."""
        return any(self.parameters[name].requires_grad for _, name in self.keys if name in self.parameters)

    def check(self) -> None:
        """Raises TrainingError if there are no gradients, or they cannot be cut."""
        grads = [p.grad for p in self.parameters.values() if p.grad is not None]
        if not grads:
            raise TrainingError(
                "no parameter has a gradient: call pruner.step() after loss.backward(), and before "
                "optimizer.zero_grad()"
            )
        if any(grad.requires_grad for grad in grads):
            raise TrainingError(
                "gradients have a graph (backward(create_graph=True)), from which the optimizer takes second "
                "derivatives: it cannot be cut. Prune first, then train with this optimizer"
            )
        for kind, name in self.keys:
            grad = self.parameters[name].grad if kind == "parameter" and name in self.parameters else None
            if grad is not None and grad.layout != torch.strided:
                raise TrainingError(
                    f"the gradient of {name} is sparse: it can be neither scored nor cut. Make its layer with "
                    "sparse=False, and an optimizer for dense gradients"
                )

    def add(self, scale: float) -> None:
        """Take in the gradients that are there, `scale` times too large."""
        tensors = [self.parameters.get(name) for _, name in self.keys]
        weights = [
            torch.empty(s, dtype=torch.float32, device="cpu") if t is None else as_real(t.detach())
            for t, s in zip(tensors, self.layout.shapes, strict=True)
        ]
        grads = [None if t is None or t.grad is None else as_real(t.grad) for t in tensors]
        row = channel_scores(self.layout, weights, grads, "taylor_signed").float()
        self.rows = [*self.rows[1 - self.most :], row / scale if scale != 1.0 else row]

    def finite(self, fresh: int) -> tuple[torch.Tensor, int]:
        """The rows that are finite, and how many of the last `fresh` are."""
        rows = self.stacked()
        good = torch.isfinite(rows).all(1)
        return rows[good], int(good[-fresh:].sum()) if fresh else 0

    def drop_broken(self) -> int:
        """Take out rows that are not finite; how many."""
        rows = self.stacked()
        good = torch.isfinite(rows).all(1)
        self.rows = list(rows[good])
        return int((~good).sum())

    def stacked(self) -> torch.Tensor:
        """All rows, on the CPU: (rows, channels)."""
        rows = [row.cpu() for row in self.rows]
        none = torch.zeros(0, self.layout.num_channels, dtype=torch.float32, device="cpu")
        return torch.stack(rows) if rows else none

    def by_group(self, rows: torch.Tensor, plan: Plan) -> dict[str, torch.Tensor]:
        """Columns of rows by group, of the channels that a plan keeps."""
        found = {}
        for name, columns in self.columns.items():
            own = rows[:, columns]
            found[name] = own[:, list(plan[name])] if name in plan else own
        return found

    def follow(self, before: Gathered, plan: Plan) -> Gathered:
        """Take over the rows of the network that `plan` made this one of, where its groups are still the same."""
        rows = before.by_group(before.stacked(), plan)
        own = [rows.get(g.name) for g in self.groups]
        if own and all(r is not None and r.shape[1] == g.size for r, g in zip(own, self.groups, strict=True)):
            self.rows = list(torch.cat([r for r in own if r is not None], 1))
        return self


def scale_of(given: Any) -> float:
    """What gradients are multiplied by, as a number.

    Raises:
        TrainingError: it is none above 0.
    """
    found = given.item() if isinstance(given, torch.Tensor) and given.numel() == 1 else given
    if not (is_number(found) and found > 0):
        raise TrainingError(
            f"scale={shown(given)} must be a positive number, what the loss was multiplied by: scaler.get_scale()"
        )
    return float(found)


def rows_that_tell(
    found: Sequence[tuple[torch.Tensor, int]], fresh: int, importance: object, trained: bool
) -> torch.Tensor:
    """The rows of all processes.

    Args:
        found: of each process its rows, and how many batches since the last step of pruning were finite.
        fresh: batches since then.
        importance: as `Pruner` has it.
        trained: as `Gathered.trained`.

    Raises:
        TrainingError: it does not say what channels are worth.
    """
    rows = torch.cat([own for own, _ in found])
    if fresh and not any(finite for _, finite in found):
        raise TrainingError(
            f"no gradient was finite in the last {fresh} batches: the loss has diverged (lower the learning rate)"
        )
    if importance not in ("fisher", "taylor"):
        return rows
    if not len(rows):
        raise TrainingError(
            "pruner.step() was not called yet: no gradient says what channels are worth. Call it in the loop, "
            "after loss.backward() and before optimizer.zero_grad(); to prune without training, call halp_fx.prune"
        )
    if not rows.any():
        if not trained:
            raise TrainingError(
                "all layers whose channels could go are frozen (requires_grad=False), so no gradient tells what "
                "they are worth: pass importance='magnitude', or use prune with data, then train"
            )
        raise TrainingError(
            f"every gradient was zero in the last {len(rows)} batches: call pruner.step() before "
            "optimizer.zero_grad(), and see that the loss depends on the network"
        )
    if all(standing(own, finite) for own, finite in found):
        if not any(own[-1].any() for own, _ in found):
            raise TrainingError(
                f"every gradient was zero in the last {fresh} batches: the loss does not depend on the network any "
                "more (all units dead), or is none of what the network puts out"
            )
        raise TrainingError(
            f"the gradients of the model's layers, and their weights, were the same in the last {fresh} batches: what "
            "the loop trains is another object (a copy.deepcopy of the model?), or the optimizer does not step this "
            "one. Make the Pruner of the model that is trained"
        )
    return rows


def standing(rows: torch.Tensor, fresh: int) -> bool:
    """Whether the last `fresh` rows are one and the same: neither weights nor gradients have changed."""
    return fresh > 1 and bool((rows[-fresh:] == rows[-1]).all())


def _look(parameter: nn.Parameter) -> Look:
    return parameter.shape, parameter.dtype, parameter.device


def _read(group: ChannelGroup, parameters: Mapping[str, Any]) -> list[WeightSlots]:
    """The slots of weights that read a group's channels."""
    found = []
    for member in group.members:
        name, dim = member.axis.tensor, member.axis.dim
        if member.role == "consumer" and name in parameters:
            row = np.full(parameters[name].shape[dim], -1, np.int64)
            row[member.slots] = np.arange(group.size)[:, None]
            found.append(WeightSlots(("parameter", name), dim, member.role, row))
    return found
