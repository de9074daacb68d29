"""Costs of a network as functions of its widths: counted from shapes, or measured layer by layer on this machine."""

from .costs import CallableCost, Cost, MacsCost, ParamsCost, RooflineCost
from .elsewhere import TableLatency, measure_request
from .errors import CorruptTableError, ForeignTableError, TableFileError, TableVersionError, TimingError
from .files import read_table, write_table
from .fingerprint import Fingerprint
from .layers import Layer
from .measured import MeasuredLatency
from .memory import MemoryCost
from .pricing import price
from .request import TableRequest, read_request, write_request
from .table import LatencyTable
from .timing import Timing

__all__ = [
    "CallableCost",
    "CorruptTableError",
    "Cost",
    "Fingerprint",
    "ForeignTableError",
    "LatencyTable",
    "Layer",
    "MacsCost",
    "MeasuredLatency",
    "MemoryCost",
    "ParamsCost",
    "RooflineCost",
    "TableFileError",
    "TableLatency",
    "TableRequest",
    "TableVersionError",
    "Timing",
    "TimingError",
    "measure_request",
    "price",
    "read_request",
    "read_table",
    "write_request",
    "write_table",
]
