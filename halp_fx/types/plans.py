"""Plan: which channels of which groups are kept. JSON, no tensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import index, lt
from typing import Any, NamedTuple

from ..errors import PlanError, instead_of_path


class Channels(NamedTuple):
    """What the channels of a group are, in short. Graphs of one network that were captured in different ways may have
    other channels under the same name: whole heads of an attention, or single features.

    Attributes:
        number: how many there are.
        outputs: of the layer that makes them.
        digest: CRC-32 of which outputs each channel is.
    """

    number: int
    outputs: int
    digest: int

    def __str__(self) -> str:
        return f"{self.number} channels of {self.outputs // self.number} outputs each"


class Making(NamedTuple):
    """Which outputs of a layer the channels of a group are, where that is regular: those of the first channel, moved on
    by as many steps as the channel has before it.

    Attributes:
        tensor: the layer's weight.
        step: from one channel to the next.
        first: runs of the first channel's outputs, (start, stop) each.
    """

    tensor: str
    step: int
    first: tuple[tuple[int, int], ...]

    def outputs(self, channels: Iterable[int]) -> tuple[int, ...]:
        """The outputs that some channels are."""
        return tuple(sorted(i + c * self.step for c in channels for run in self.first for i in range(*run)))

    @classmethod
    def of(cls, data: Any) -> Making:
        """Of a list, as JSON has it.

        Raises:
            ValueError, TypeError: it is none.
        """
        tensor, step, first = data
        return cls(str(tensor), int(step), tuple((int(start), int(stop)) for start, stop in first))


@dataclass(frozen=True, slots=True)
class Plan(Mapping[str, tuple[int, ...]]):
    """For every group it names, the sorted indices of the channels kept. A group not named keeps all.

    Attributes:
        kept: group name -> indices.
        dropped: names of the residual branches that go whole (see `branches`), sorted.
        made_for: what the channels of groups were in the network that the plan was made for, so that it is refused
            where they are others. Empty for plans that were written by hand; it does not count in comparisons.
        made_by: all layers that make the channels of a group. Where a network has other groups than the one that the
            plan was made for, what these layers keep says which of their channels stay. Only of groups with several
            layers, or several outputs a channel; it does not count either.
    """

    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    made_for: Mapping[str, Channels] = field(default_factory=dict, compare=False, repr=False)
    made_by: Mapping[str, tuple[Making, ...]] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.kept, Mapping):
            raise PlanError(
                f"a plan of {self.kept!r:.60} is no mapping from groups to the channels that they keep; Plan.from_json "
                "reads the text of a plan's file"
            )
        clean = {}
        for name, indices in self.kept.items():
            try:
                given = list(indices)
                if set(map(type, given)) != {int} and any(map(_is_flag, given)):
                    raise PlanError(
                        f"group {name!r}: this is a mask: pass the indices of the channels that stay, "
                        "such as mask.nonzero().flatten()"
                    )
                row = tuple(map(index, given))
            except TypeError as error:
                raise PlanError(f"group {name!r}: kept channels must be whole numbers ({error})") from error
            if not row:
                raise PlanError(f"group {name!r}: a plan must keep at least one channel")
            if row[0] < 0 or not all(map(lt, row, row[1:])):
                raise PlanError(f"group {name!r}: kept channels must be ascending, distinct and not negative")
            clean[str(name)] = row
        object.__setattr__(self, "kept", clean)
        object.__setattr__(self, "dropped", tuple(sorted(set(self.dropped))))

    def __getitem__(self, group: str) -> tuple[int, ...]:
        return self.kept[group]

    def __iter__(self) -> Iterator[str]:
        return iter(self.kept)

    def __len__(self) -> int:
        return len(self.kept)

    def __bool__(self) -> bool:
        return bool(self.kept or self.dropped)

    def to_json(self) -> str:
        """A JSON object: group name -> kept channel indices, and the branches dropped.

        A plan without dropped branches has format 1, which older versions read; one with them has format 2, which
        they refuse.
        """
        data: dict[str, Any] = {"format": _PLAN_FORMATS[bool(self.dropped)]}
        data["kept"] = {k: list(v) for k, v in self.kept.items()}
        if self.dropped:
            data["dropped"] = list(self.dropped)
        if self.made_for:
            data["made_for"] = {k: list(v) for k, v in self.made_for.items()}
        if self.made_by:
            data["made_by"] = {k: [list(layer) for layer in v] for k, v in self.made_by.items()}
        return json.dumps(data)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Inverse of `to_json`.

        Raises:
            PlanError: the text is not a plan.
        """
        try:
            data = json.loads(text)
            form, kept, dropped = data["format"], data["kept"], data.get("dropped", [])
            rows = {str(k): tuple(v) for k, v in kept.items()}
            made_for = {str(k): Channels(*map(int, v)) for k, v in data.get("made_for", {}).items()}
            made_by = {str(k): tuple(map(Making.of, v)) for k, v in data.get("made_by", {}).items()}
        except KeyError as error:
            raise PlanError(f"this is not a plan in JSON: it has no {error}") from error
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise PlanError(f"this is not a plan in JSON: {error}{instead_of_path(text)}") from error
        if form not in _PLAN_FORMATS:
            raise PlanError(
                f"plan format {form!r} is not known here (expected {' or '.join(map(repr, _PLAN_FORMATS))})"
            )
        if any(not isinstance(i, int) or isinstance(i, bool) for row in rows.values() for i in row):
            raise PlanError("a plan's kept channels must be whole numbers")
        if not isinstance(dropped, list) or any(not isinstance(name, str) for name in dropped):
            raise PlanError("a plan's dropped branches must be a list of names")
        if any(made.number < 1 for made in made_for.values()):
            raise PlanError("a plan is made for groups of at least one channel")
        return cls(rows, tuple(dropped), made_for, made_by)


_PLAN_FORMATS = ("halp_fx.plan/1", "halp_fx.plan/2")


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))
