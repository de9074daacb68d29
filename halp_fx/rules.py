"""The rules of operators under the name that is documented: they are at home in `coupling.rules`."""

from .coupling.rules import *  # noqa: F403
from .coupling.rules import __all__ as __all__
