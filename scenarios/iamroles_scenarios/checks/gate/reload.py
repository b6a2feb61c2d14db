"""HAProxy reloads under traffic: too rich for a scenario file, because two things happen at once."""

from __future__ import annotations

from iamroles_scenarios.checks.proxy.traffic import HttpQuestion, shut, traffic
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import Expectation, RequestSpec
from iamroles_scenarios.engine.bench import bench
from iamroles_scenarios.engine.target import Target

_CLIENTS = 3
_RELOADS = 3
_BETWEEN = 30
"""Requests answered before the next reload: traffic must flow on both sides of each."""


@check("gate.haproxy-reload.verdicts", "GATE-RELOAD-001")
def haproxy_reload(target: Target) -> None:
    """Reloads of HAProxy under traffic change no verdict."""
    with bench(target, "orders", "gate.haproxy-reload", own=True) as here:
        token = here.token(exp="+15m")
        questions = [
            HttpQuestion(RequestSpec(path="/orders/1"), token, Expectation(backend="orders-ro")),
            HttpQuestion(RequestSpec(path="/admin"), token, shut(403)),
        ]
        people, when = [questions] * _CLIENTS, f"during {_RELOADS} reloads"
        with traffic(here, people, when, lossless=False) as flowing:
            for _ in range(_RELOADS):
                flowing.wait(_BETWEEN)
                here.world.haproxy.reload()
            flowing.wait(_BETWEEN)
