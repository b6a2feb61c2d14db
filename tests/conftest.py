"""One rule for tests that need a Docker engine.

Where none answers they are skipped, and pytest says why. Under `--iamroles-require=containers`, or with
`IAMROLES_REQUIRE=containers` in the environment (as in `.ci/run`), they fail instead: a run that should have
covered containers never passes without.
"""

import os

import pytest
from hypothesis import HealthCheck, settings

REQUIRE = "IAMROLES_REQUIRE"


@pytest.fixture(scope="session")
def engine(pytestconfig):
    """A client of the Docker engine."""
    from iamroles_scenarios.stage.docker import find_engine

    client, why = find_engine()
    if client is None:
        wanted = pytestconfig.getoption("--iamroles-require") or os.environ.get(REQUIRE)
        if wanted == "containers":
            pytest.fail(f"Containers are required, but {why}.", pytrace=False)
        pytest.skip(f"needs containers, but {why}")
    return client


# Two shared cores may be busy with something else: a slow draw is no fault of the property under test.
settings.register_profile("iamroles", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("iamroles")
