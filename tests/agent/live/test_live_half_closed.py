"""A tunnel whose client has closed its side: HAProxy's `shutdown session` does nothing to it."""

import time

import pytest
from gate_bench import gate_bench

from iamroles_scenarios.checks.live.fixture import HALF
from iamroles_scenarios.stage import haproxies, open_stage

WITHIN = 10.0
"""Less than the filter's own look at a silent stream takes."""


@pytest.mark.parametrize("release", haproxies.here())
def test_it_ends_by_a_revocation(release):
    with open_stage("processes", haproxy=release) as stage, gate_bench(stage, "half", revoking=True) as here:
        tokens = [here.token(sub=sub, exp="+15m", claims={"jti": "1"}) for sub in ("gone", "other")]
        going, staying = (here.open_all(HALF, token) for token in tokens)
        here.revoke(principals=["gone"])

        assert [str(one) for one in going if not one.until(time.time() + WITHIN)] == []
        assert all(one.lives() for one in staying)
