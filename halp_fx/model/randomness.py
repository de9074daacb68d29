"""The caller's random numbers: halp_fx draws none of them, and what a callback draws is not given back."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numpy as np
import torch

from ..arguments import check_called
from ..errors import HalpError

States = tuple[Any, Any, torch.Tensor, list[torch.Tensor]]
"""Of Python, numpy, PyTorch on the CPU, and each GPU."""


class Stream:
    """The global random states (Python, numpy, PyTorch on CPU and GPUs) as the caller's code has left them."""

    def __init__(self) -> None:
        self._states = states()

    def kept(self) -> tuple[dict[str, torch.Tensor], str]:
        """The caller's states and those that stand now, as `restore` takes them: tensors by name, and text."""
        found: dict[str, torch.Tensor] = {}
        words = {}
        for name, (python, numpy, cpu, on_gpu) in (("caller", self._states), ("own", states())):
            found |= {f"{name}.numpy": torch.from_numpy(numpy[1].astype(np.int64)), f"{name}.torch": cpu.clone()}
            found |= {f"{name}.gpu{i}": state.cpu().clone() for i, state in enumerate(on_gpu)}
            words[name] = [python, [numpy[0], *numpy[2:]]]
        return found, json.dumps(words)

    def restore(self, tensors: Mapping[str, torch.Tensor], words: str) -> None:
        """Go on with random states that were `kept`; the caller has theirs back at the end of `aside`."""
        read = json.loads(words)
        made = {}
        for name, (python, (kind, *rest)) in read.items():
            version, inner, gauss = python
            gpus = [tensors[key] for i in range(len(tensors)) if (key := f"{name}.gpu{i}") in tensors]
            numpy = (kind, tensors[f"{name}.numpy"].numpy().astype(np.uint32), *rest)
            made[name] = ((version, tuple(inner), gauss), numpy, tensors[f"{name}.torch"], gpus)
        self._states = made["caller"]
        _restore(made["own"])

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Put the caller's states back at the end, also after an error."""
        try:
            yield
        finally:
            _restore(self._states)

    def given(self, function: Callable[..., Any] | None, name: str) -> Callable[..., Any] | None:
        """A caller's function of the network that goes on with the caller's random numbers, and with gradients.

        Args:
            name: of the argument.

        Raises:
            HalpError: it is none.
        """
        if function is None:
            return None
        check_called(name, function, HalpError, ("the network",))

        @wraps(function)
        def run(*args: Any) -> Any:
            own = states()
            _restore(self._states)
            try:
                with torch.enable_grad():
                    return function(*args)
            finally:
                self._states = states()
                _restore(own)

        return run


def states() -> States:
    """The global random states as they are now."""
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), on_gpu


def undrawn(since: States) -> bool:
    """Whether nothing was drawn from the global random states since."""
    (python, numpy, cpu, on_gpu), (own, other, now, gpus) = since, states()
    return (
        python == own
        and all(np.array_equal(a, b) for a, b in zip(numpy, other, strict=True))
        and torch.equal(cpu, now)
        and all(torch.equal(a, b) for a, b in zip(on_gpu, gpus, strict=False))
    )


def _restore(states: States) -> None:
    python, numpy, cpu, on_gpu = states
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if on_gpu:
        torch.cuda.set_rng_state_all(on_gpu)
