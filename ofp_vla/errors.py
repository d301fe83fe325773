"""Errors that say on one line what was wrong, where, and what to do."""

from __future__ import annotations


class OFPError(Exception):
    """Base of the errors that a user can act on."""


class CheckpointError(OFPError, ValueError):
    """A checkpoint that cannot be loaded exactly: missing, corrupt, of another type, or with other keys."""


class DataError(OFPError, ValueError):
    """A batch or dataset that the policy must not train on or act on."""


class NonFiniteActionError(OFPError, FloatingPointError):
    """The policy computed an action that is NaN or infinite; nothing was sent to the robot."""


class DeviceError(OFPError, ValueError):
    """A device was asked for that this machine, or this build of PyTorch, does not have."""


class MemoryFullError(OFPError, MemoryError):
    """A pass of the network that does not fit in memory; says nothing about the policy."""


class UnsupportedPolicyError(OFPError, TypeError):
    """A policy that `ofp_vla.patch` cannot take, or one that it did not make."""
