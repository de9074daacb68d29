"""The values that the stages pass to each other: frozen, and free of torch modules. Everything may import them."""

from .cuts import Cuts
from .dependencies import CONCAT, LAYER, Dependency, DependencyGraph, in_runs
from .mismatches import Mismatch
from .origins import Origin, Signature
from .plans import Channels, Plan
from .records import RECORD, Record, TensorSpec
from .runs import FailedCall, ModuleCall, Run, ValueRead
from .values import (
    CONSTANT,
    SCORED,
    AttributeEdit,
    Axis,
    ChannelGroup,
    ChannelMap,
    ComputedWeight,
    Coupling,
    Decisions,
    Extent,
    ForwardPart,
    Further,
    Inputs,
    Link,
    Links,
    Member,
    Mend,
    Tie,
    Traced,
    WeightPart,
    scored_name,
)

__all__ = [
    "CONCAT",
    "CONSTANT",
    "LAYER",
    "RECORD",
    "SCORED",
    "AttributeEdit",
    "Axis",
    "ChannelGroup",
    "ChannelMap",
    "Channels",
    "ComputedWeight",
    "Coupling",
    "Cuts",
    "Decisions",
    "Dependency",
    "DependencyGraph",
    "Extent",
    "FailedCall",
    "ForwardPart",
    "Further",
    "Inputs",
    "Link",
    "Links",
    "Member",
    "Mend",
    "Mismatch",
    "ModuleCall",
    "Origin",
    "Plan",
    "Record",
    "Run",
    "Signature",
    "TensorSpec",
    "Tie",
    "Traced",
    "ValueRead",
    "WeightPart",
    "in_runs",
    "scored_name",
]
