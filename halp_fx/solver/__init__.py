"""Choose a width for every channel group: the value is greatest, every budget is met, the gap is certified.

Takes a `WidthProblem` (numbers only, see `problem`), returns a `Solution`. Imports no torch.
"""

from .layout import Shared
from .limits import restrict
from .problem import Solution, WidthProblem
from .solution import Method, solve
from .tables import Branch, CostTable, Term, WidthGroup

__all__ = [
    "Branch",
    "CostTable",
    "Method",
    "Shared",
    "Solution",
    "Term",
    "WidthGroup",
    "WidthProblem",
    "restrict",
    "solve",
]
