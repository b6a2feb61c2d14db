"""HAProxy reloads under traffic: too rich for a scenario file, because two things happen at once."""

from __future__ import annotations

from iamroles_scenarios.base.errors import HarnessFault
from iamroles_scenarios.checks.proxy.traffic import Turn, shut, traffic
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import Expectation, RequestSpec
from iamroles_scenarios.engine.bench import bench
from iamroles_scenarios.engine.target import Target

_CLIENTS = 3
_RELOADS = 3
_BETWEEN = 30
"""Requests answered before the next reload: traffic must flow on both sides of each."""
_DEADLINE = 20.0
"""Seconds, times the scale, for each of these rounds."""


@check("gate.haproxy-reload.verdicts", "GATE-RELOAD-001")
def haproxy_reload(target: Target) -> None:
    """Reloads of HAProxy under traffic change no verdict."""
    with bench(target, "orders", "gate.haproxy-reload", own=True) as here:
        token = here.token(exp="+15m")
        turns = [
            Turn(RequestSpec(path="/orders/1"), token, Expectation(backend="orders-ro")),
            Turn(RequestSpec(path="/admin"), token, shut(403)),
        ]
        with traffic(here, [turns] * _CLIENTS) as tally:
            for round_ in range(_RELOADS + 1):
                if not tally.wait(_BETWEEN, here.seconds(_DEADLINE)):
                    raise here.failed(f"fewer than {_BETWEEN} requests were answered within {_DEADLINE:g} s")
                if round_ < _RELOADS:
                    here.world.haproxy.reload()
        if tally.lost:
            raise HarnessFault(tally.lost[0])
        tally.judge(here, f"during {_RELOADS} reloads")
