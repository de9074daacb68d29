"""Passes over graphs that other tools captured, under their documented name; see `halp_fx.compiling`."""

from .compiling.fx_pass import PruneChannels

__all__ = ["PruneChannels"]
