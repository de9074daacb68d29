"""What the user writes for a budget -> an amount in the unit of a cost, and amounts in words."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..arguments import is_number, shown
from ..errors import BudgetError, few

_EXAMPLES = {"latency": "4.0ms", "macs": "1.5G", "flops": "3G", "params": "5M", "memory": "20MB"}
_RATES = ("fps", "hz", "qps")

# Factor to the base unit of each resource: milliseconds, MACs, parameters, bytes.
_UNITS: dict[str, dict[str, float]] = {
    "latency": {"s": 1e3, "ms": 1.0, "us": 1e-3, "µs": 1e-3},
    "macs": {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12},
    "params": {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9},
    "memory": {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30},
}
# A multiply-accumulate is two floating point operations; an amount without a word is of what the budget is called.
_NAMED = {f"{p}macs": n for p, n in _UNITS["macs"].items()} | {f"{p}flops": n / 2 for p, n in _UNITS["macs"].items()}
_UNITS["flops"] = {p: n / 2 for p, n in _UNITS["macs"].items()} | _NAMED
_UNITS["macs"] |= _NAMED
_UNITS["params"] |= {f"{p}{word}": n for p, n in _UNITS["params"].items() for word in ("params", "parameters")}
_SHOWN = 8
"""Units that an error lists: all of a resource but the long names."""

# As reports write amounts, too: "1.82 G MACs".
_AMOUNT = re.compile(r"^\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(%|[a-zµ]*(?:\s+[a-z]{3,})?)\s*$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Budget:
    """Either a share of the dense network's cost or an amount in the resource's base unit."""

    share: float | None = None
    amount: float | None = None

    def limit(self, dense: float) -> float:
        """The amount that may be spent, given the dense network's cost."""
        if self.share is not None:
            return self.share * dense
        assert self.amount is not None
        return self.amount


BudgetLike = float | str | Mapping[str, float | str]


def parse_budget(budget: float | str, resource: str = "latency") -> Budget:
    """A number in (0, 1] or a percentage is a share of the dense cost; with a unit it is an amount.

    Raises:
        BudgetError: malformed or out of range.
    """
    if not isinstance(budget, str):
        if not is_number(budget):
            raise BudgetError(
                f"budget {shown(budget)} of {resource} is neither a number nor a string: write {_forms(resource)}"
            )
        return Budget(share=_share(float(budget), budget, resource))
    match = _AMOUNT.match(budget)
    if match is None:
        raise BudgetError(f"budget {budget!r} of {resource} is malformed: write {_forms(resource)}")
    value, unit = float(match[1]), "".join(match[2].lower().split())
    if unit == "%":
        return Budget(share=_share(value / 100, budget, resource))
    units = _UNITS.get(resource, {"": 1.0})
    if unit not in units:
        if unit == "":
            return Budget(share=_share(value, budget, resource))
        raise BudgetError(_unknown_unit(budget, value, unit, resource, tuple(filter(None, units))))
    if unit == "" and value <= (100 if resource in _UNITS else 1):  # Nobody means fifty parameters by "50".
        return Budget(share=_share(value, budget, resource))
    if not math.isfinite(value) or value <= 0:
        raise BudgetError(f"budget {budget!r} of {resource} must be positive")
    return Budget(amount=value * units[unit])


def _share(value: float, written: object, resource: str) -> float:
    if not math.isfinite(value) or not 0 < value <= 1:
        percent = isinstance(written, str) and written.strip().endswith("%")
        meant = "" if percent or not 1 < value <= 100 else f'did you mean "{value:.4g}%"? Otherwise '
        raise BudgetError(f"budget {written!r} is not between 0 and 1, or 0% and 100%: {meant}write {_forms(resource)}")
    return value


def _forms(resource: str) -> str:
    """What may be written."""
    amounts = f', or an amount such as "{_EXAMPLES[resource]}"' if resource in _EXAMPLES else ""
    return f'0.6 or "60%" (of the dense network){amounts}'


def _unknown_unit(written: str, value: float, unit: str, resource: str, units: tuple[str, ...]) -> str:
    """What is said of a unit that is not the resource's, with what was probably meant."""
    if unit in _RATES and resource == "latency" and value > 0:
        return f'budget {written!r} is a rate: write the time of one call, "{1000 / value:.4g}ms"'
    if unit in ("percent", "pct"):
        return f'budget {written!r}: write a share of the dense network as "{value:.4g}%"'
    other = next((name for name, own in _UNITS.items() if unit in own), None)
    hint = f"; it is one of {other}" if other else ""
    known = few(units, _SHOWN)
    return f"budget {written!r}: {unit!r} is not a unit of {resource} ({known}){hint}: write {_forms(resource)}"


_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def amount(value: float, unit: str = "") -> str:
    """ "4.02 ms", "49.0 µs", "1.82 G MACs", "12.3 MB"; without a unit "25.6 M"."""
    shown_ = float(_three(value))  # 999,999.9 is a million, and not a thousand thousands.
    if unit == "ms":
        if 0 < value < 0.1:
            return f"{_three(value * 1000)} µs"
        return f"{_three(value)} ms" if shown_ < 1000 else f"{_three(value / 1000)} s"
    for size, prefix in _STEPS:
        if abs(shown_) >= size:
            word = f"{prefix}B" if unit == "bytes" else f"{prefix} {unit}"
            return f"{_three(value / size)} {word}".rstrip()
    return f"{value:.4g} {unit}".rstrip()


def figure(value: float, unit: str) -> str:
    """An amount below a head that names the unit: "4.019" of ms, "1.82 G" of MACs."""
    return f"{value:.4g}" if unit == "ms" else amount(value)


def _three(value: float) -> str:
    """With three digits: "9.30", "18.6", "104"."""
    return f"{value:#.3g}".rstrip(".") if value else "0"
