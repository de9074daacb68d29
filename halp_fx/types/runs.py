"""How a forward ran: its modules, its mode, and what it read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ModuleCall:
    """One run of a module's forward.

    Attributes:
        module, kind: qualified name and class.
        start, end: its operators are the nodes at these positions of the graph (`end` excluded), as far as they are
            no parameters and no results taken from a tuple: those appear where they are first read.
        parent: position in `Traced.calls` of the run that this one is part of, -1 for the model's own.
        inputs: node of each positional argument, None for one that is no tensor.
        outputs: node of each result, None for one that is no tensor (or that nothing reads).
        single: the result is a tensor, not a tuple.
        plain: inputs and outputs are all there is: no tensors in lists or dicts. Keyword arguments are not seen.
        hooked: the module has hooks of its own.
    """

    module: str
    kind: type
    start: int
    end: int
    parent: int
    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]
    single: bool
    plain: bool
    hooked: bool


@dataclass(frozen=True, slots=True)
class Cache:
    """An attribute of a module that the forward put something into.

    Attributes:
        before: a "table" (a dictionary), "missing", or the "value" that it had.
        value: that one: None, or a tuple of numbers.
    """

    module: str
    attribute: str
    before: str
    value: tuple[Any, ...] | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """How a forward was run to be recorded.

    Attributes:
        example: which of the example inputs.
        training: in train mode, and on a batch of two at least (BatchNorm refuses one value per channel).
        calls: how many times in a row.
        whole: it ran to its end.
        device: where the program was told that its tensors are. Trial networks, which have no values, tell it the same.
        catches: it may go on after a function of PyTorch has failed, as the forward catches the error. Where none is
            known to fail, one that does is how a pruned network goes wrong, and it ends there.
    """

    example: int = 0
    training: bool = False
    calls: int = 1
    whole: bool = True
    device: str = ""
    catches: bool = True

    @property
    def repeatable(self) -> bool:
        """Whether a pruned network must do the same in such a run."""
        return self.whole and self.calls == 1


@dataclass(frozen=True, slots=True)
class ValueRead:
    """The program took values out of a tensor: it may go on with them in Python, or decide by them.

    Attributes:
        node: the tensor.
        where: by which function, in which module and line.
        straight: the program is a graph, which goes on alike whatever the values are.
    """

    node: str
    where: str
    straight: bool = False


@dataclass(frozen=True, slots=True)
class FailedCall:
    """The call of a function of PyTorch with which a forward failed.

    Attributes:
        function: its name.
        source: the line of the program that called it.
        sources: where the numbers come from that it was given, in a trial (see `tracing.tags`).
    """

    function: str
    source: str
    sources: frozenset[Any]
