"""Policies that several tests of the hosts read; a test that changes weights builds its own."""

import pytest

from ..tiny import tiny_policy


@pytest.fixture(scope="session")
def fresh_policy():
    """A policy whose interval head is as it starts: zero."""
    return tiny_policy()
