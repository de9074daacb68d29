"""Takes a model, its `Coupling` and data, returns a `Saliency`: what each channel is worth."""

from .saliency import Saliency, score

__all__ = ["Saliency", "score"]
