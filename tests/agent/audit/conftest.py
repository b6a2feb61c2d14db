"""A log, and where it is."""

import pytest
from audit_support import opened


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


@pytest.fixture
def log(path):
    return opened(path)
