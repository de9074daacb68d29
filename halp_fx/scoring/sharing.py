"""sharing: a network, batches, and the same network without one part or another -> how far each is from it.

As `Reference.apart`, but each form is the network itself, changed for a while, and what a form has in common with the
whole network is computed once: modules that do the same in both give back what they put out for this batch before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..errors import SaliencyError
from ..model.preserving import snapshot
from ..model.randomness import states, undrawn
from ..tracing.memory import storage_of
from .divergence import Apart, Reference, Terms, parts_of, running, terms, to_compare
from .losses import called, inputs_of, moved

MOST = 2**31
"""Bytes of results that are kept at a time, of one batch. To value channels takes more: every operator's result is kept
then, for the gradients. ResNet-50 has 1.4 GB of them for 64 images of 224 pixels."""


@dataclass(frozen=True, slots=True)
class Form:
    """A network without a part.

    Attributes:
        change: makes it of the whole network, in place, and undoes that in the end.
        same: modules that do the same in it as in the whole network, each run once, and nothing else.
    """

    change: Callable[[], AbstractContextManager[None]]
    same: Collection[str] = ()


def apart_from(
    model: nn.Module, batches: Sequence[Any], forms: Mapping[str, Form], *, statistics: bool = False
) -> tuple[Reference, dict[str, Apart]]:
    """What a network puts out, and how far each of its forms is from that. The model stays as it is.

    Args:
        statistics: as `Reference.statistics`.

    Raises:
        SaliencyError: outputs do not compare; or the network draws random numbers, so that forms would differ by these.
    """
    device = next(model.parameters()).device
    there = [moved(batch, device) for batch in batches]
    outputs = []
    rows: dict[str, list[Terms]] = {name: [] for name in forms}
    shared = {name for form in forms.values() for name in form.same}
    with running(model, statistics):
        for batch in there:
            results = _Results(model)
            before = states()
            with results.kept(shared):
                wanted = parts_of(called(model, inputs_of(batch)))
            if not undrawn(before):
                raise SaliencyError("the network draws random numbers: it is not the same twice")
            outputs.append(wanted)
            for name, form in forms.items():
                with form.change():
                    to_compare(model, statistics)
                    with results.given(form.same):
                        found = parts_of(called(model, inputs_of(batch)))
                rows[name].append(terms(wanted, found))
    reference = Reference(there, outputs, None, statistics)
    return reference, {name: reference.joined(found) for name, found in rows.items()}


@dataclass(slots=True, eq=False)
class _Kept:
    """What a module put out, the tensors in it, and how often these were written to by then."""

    value: Any
    tensors: Sequence[torch.Tensor]
    versions: Sequence[int]

    @property
    def stands(self) -> bool:
        """Whether nobody wrote to it since."""
        return [t._version for t in self.tensors] == self.versions


@dataclass(slots=True, eq=False)
class _Results:
    """What modules of a network put out in one run of it."""

    model: nn.Module
    _known: dict[str, _Kept] = field(default_factory=dict)

    @contextmanager
    def kept(self, names: Collection[str]) -> Iterator[None]:
        """Keep what these put out meanwhile, if each runs once and leaves its attributes as they are."""
        runs: dict[str, int] = {}
        standing = {name: snapshot(module) for name, module in self.model.named_modules()}

        def noted(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                value = forward(*args, **kwargs)
                runs[name] = runs.get(name, 0) + 1
                tensors = _tensors_of(value)
                if tensors is not None:
                    self._known[name] = _Kept(_again(value), tensors, [t._version for t in tensors])
                    self._forget_largest()
                return value

            return run

        with _forwards(self.model, names, noted):
            yield
        changed = [name for name, as_it_was in standing.items() if not as_it_was()]
        for name in list(self._known):
            if runs[name] > 1 or any(f"{other}.".startswith(f"{name}.") for other in changed):
                del self._known[name]

    @contextmanager
    def given(self, names: Collection[str]) -> Iterator[None]:
        """Give back what was kept of these in place of running them; what was written to since is computed again."""

        def known(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
            kept = self._known[name]

            def run(*args: Any, **kwargs: Any) -> Any:
                if not kept.stands:
                    return forward(*args, **kwargs)
                return _again(kept.value)

            return run

        with _forwards(self.model, [name for name in names if name in self._known], known):
            yield

    def _forget_largest(self) -> None:
        """Keep no more than `MOST` bytes. Of convolutional networks the largest are the first, which save least for
        what they take; of equally large ones the last save least."""
        while True:
            sizes = {storage_of(t): t.untyped_storage().nbytes() for k in self._known.values() for t in k.tensors}
            if sum(sizes.values()) <= MOST:
                return
            own = {n: sum(sizes[storage_of(t)] for t in kept.tensors) for n, kept in self._known.items()}
            del self._known[max(reversed(own), key=own.__getitem__)]


@contextmanager
def _forwards(
    model: nn.Module, names: Collection[str], instead: Callable[[str, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Modules of a model with another forward, made of a name and the forward that is there. Hooks run as ever."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found = {n: modules[n] for n in names if n in modules and not isinstance(modules[n], torch.jit.ScriptModule)}
    before = {name: vars(module).get("forward") for name, module in found.items()}
    try:
        for name, module in found.items():
            vars(module)["forward"] = instead(name, module.forward)
        yield
    finally:
        for name, own in reversed(before.items()):
            vars(found[name]).pop("forward", None)  # A module may have two names.
            if own is not None:
                vars(found[name])["forward"] = own


def _tensors_of(value: Any) -> list[torch.Tensor] | None:
    """The tensors of a result that can be given again: a tensor, or a tuple or list of some; None for another."""
    row = value if type(value) in (tuple, list) else [value]
    tensors = [item for item in row if isinstance(item, torch.Tensor)]
    plain = all(item is None or type(item) in (torch.Tensor, bool, int, float, str) for item in row)
    return tensors if tensors and plain and not any(t.is_inference() for t in tensors) else None


def _again(value: Any) -> Any:
    """A result, in a list of its own: who is given one may take it apart."""
    return list(value) if isinstance(value, list) else value
