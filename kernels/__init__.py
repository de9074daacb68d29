"""Memory-speed parts of halp_fx: channel saliency in one launch, and latency-table lookup (`dispatch`).

The folder lies at the top of the repository and is part of the package as `halp_fx.kernels`. A checkout on `sys.path`
offers it as `kernels`, too: the name of a package on PyPI, for which it steps aside.
"""

if "." not in __name__:
    from . import aside

    aside.step_aside(__name__)
else:
    from .dispatch import channel_scores, lookup, runs_on_triton
    from .layout import Segment, SegmentLayout
    from .tables import TableStack
    from .variants import VARIANTS, Variant

    __all__ = [
        "VARIANTS",
        "Segment",
        "SegmentLayout",
        "TableStack",
        "Variant",
        "channel_scores",
        "lookup",
        "runs_on_triton",
    ]
