"""What the caller passed: checked, normalised, copied, and left as it was found."""

from .checks import check_model
from .inputs import normalize_examples
from .preserving import preserved

__all__ = ["check_model", "normalize_examples", "preserved"]
