"""What several tests of the policy read."""

import pytest

from ..tiny import write_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """Folder of a word-level tokenizer."""
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
