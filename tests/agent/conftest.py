"""Tools of the tests of a running agent."""

import pytest
from tokens_support import publishing


@pytest.fixture(scope="module")
def idp():
    """An issuer that publishes one key."""
    with publishing() as server:
        yield server
