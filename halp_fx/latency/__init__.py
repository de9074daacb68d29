"""Costs of a network as functions of its widths: counted from shapes, or measured layer by layer on this machine."""

from .calibration import Calibration
from .costs import CallableCost, Cost, MacsCost, ParamsCost, RooflineCost
from .layers import Layer, layers
from .measured import MeasuredLatency
from .memory import MemoryCost
from .table import LatencyTable
from .timing import Timing, interleaved

__all__ = [
    "Calibration",
    "CallableCost",
    "Cost",
    "LatencyTable",
    "Layer",
    "MacsCost",
    "MeasuredLatency",
    "MemoryCost",
    "ParamsCost",
    "RooflineCost",
    "Timing",
    "interleaved",
    "layers",
]
