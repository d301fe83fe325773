"""Interval fields, objectives and sampling in pure torch; knows no host model (contract: `field.py`)."""

from .ema import EmaDecay, update_ema
from .field import ActionChunk, IntervalField, Query
from .losses import Losses
from .objectives import OFP, ROLES, FlowMatching, FlowMatchingConfig, Objective, OFPConfig, require_roles
from .sampling import sample, shift_and_pad

__all__ = [
    "OFP",
    "ROLES",
    "ActionChunk",
    "EmaDecay",
    "FlowMatching",
    "FlowMatchingConfig",
    "IntervalField",
    "Losses",
    "OFPConfig",
    "Objective",
    "Query",
    "require_roles",
    "sample",
    "shift_and_pad",
    "update_ema",
]
