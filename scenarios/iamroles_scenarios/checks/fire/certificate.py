"""HAProxy's certificate is replaced while people connect: through its Runtime API, and by file and reload.

Every question comes on a connection of its own, with a handshake of its own, by a client that trusts the old
and the new certificate. What goes wrong with the shipped configuration is no failure of the agent, unless it
is an answer. Some answers are slow, so that a few are always in flight.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from iamroles_scenarios.checks.fault.ground import own_suffix
from iamroles_scenarios.checks.proxy.traffic import Gate
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import Expectation, RequestSpec, WorldSpec
from iamroles_scenarios.declarations.timeline import WindowSpec
from iamroles_scenarios.engine.certificates import Certificate, Site, by_reload, by_runtime, proxys
from iamroles_scenarios.engine.fire import kindle
from iamroles_scenarios.engine.ledger import Flow, Kind
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.errors import AgentFault, CheckFailed, Evidence, StageError, Untestable
from iamroles_scenarios.stage import World

_BETWEEN = 60
"""Answers before, between and after the changes."""


def _played(target: Target, change: Callable[[World, Certificate], str]) -> str:
    """Change the certificate twice under traffic; the remark."""
    site = Site(3)
    settings = site.settings | {"IAM_TIMEOUT_PROCESSING": "20s"}
    spec = WorldSpec(policy="orders", own=True)
    try:
        place = target.worlds.start(spec, own_suffix(), settings=settings, files=site.files)
    except StageError as error:
        if "haproxy" in error.logs:
            raise Untestable(
                "HAProxy's configuration must split IAM_BIND into words, as `bind` takes them (docs/stage.md)"
            ) from error
        raise
    with place.world, closing(Gate(target, place)) as gate:
        reader, dead = (gate.token(exp=exp) for exp in ("+15m", "-5m"))
        served = Expectation(status=200, allow=True, backend="orders-ro")
        shut = [Expectation(status=status, allow=False, backend="") for status in (401, 403)]
        flows = [
            Flow("reader", RequestSpec(), reader, served),
            Flow("slow", RequestSpec(path="/orders/1?after=300"), reader, served, weight=0.5),
            Flow("dead", RequestSpec(), dead, shut[0]),
            Flow("closed", RequestSpec(path="/elsewhere"), reader, shut[1]),
        ]
        with kindle(place.world, flows, rate=60, scale=target.scale, tls=site.tls, fresh=True) as fire:
            fire.wait(_BETWEEN)
            for number in (1, 2):
                with fire.step(f"change {number}"):
                    why = site.replace(place.world, change, target.scale)
                if why:
                    raise _proxys(gate, why)
                fire.wait(_BETWEEN)
        found = fire.judge(WindowSpec(check="all", between=["begin", "end"]))
        if found.bad:
            entry, kind, why = found.bad[0]
            sent, received = entry.shown
            if kind is Kind.LOST:
                raise _proxys(gate, f"{found}: {why}")
            raise CheckFailed(f"{found}: {why}", Evidence(sent, received=received, logs=place.world.logs()))
        return str(found)


def _proxys(gate: Gate, message: str) -> Exception:
    """A failure with the logs, where it is one of the agent's."""
    fault = proxys(gate.target.agent, message)
    return gate.failed(message) if isinstance(fault, AgentFault) else fault


@check(
    "fire.certificate.runtime",
    requirements=["FIRE-CERTIFICATE-001"],
    lane="proxy",
    title="a certificate that is replaced through the Runtime API costs no request and no handshake",
)
def runtime(target: Target) -> str:
    """`set ssl cert` and `commit ssl cert` (management.txt section 9.3)."""
    return _played(target, by_runtime)


@check(
    "fire.certificate.reload",
    requirements=["FIRE-CERTIFICATE-001"],
    lane="proxy",
    title="a certificate that is replaced by its file and a reload costs no request and no handshake",
)
def reload(target: Target) -> str:
    """The old worker finishes the handshakes and requests that it has begun."""
    return _played(target, by_reload)
