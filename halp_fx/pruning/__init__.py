"""pruning: takes a request, returns a session: the steps, and the candidates that were measured against the budget."""

from .session import Session

__all__ = ["Session"]
