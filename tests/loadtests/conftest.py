"""A result of the meter, as a run wrote it."""

from pathlib import Path

import pytest

from iamroles_loadtests.results import result


@pytest.fixture
def example():
    return result.load(Path(__file__).with_name("example-result.json"))
