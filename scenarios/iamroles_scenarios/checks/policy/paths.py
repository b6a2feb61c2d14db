"""Policy checks by corpus: traversal and encoding tricks, through HAProxy and straight to the agent."""

from __future__ import annotations

from iamroles_scenarios.checks.oracle.corpus import Kind, Trick, careless, tricks
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.bench import Bench, bench
from iamroles_scenarios.engine.observation import Observation
from iamroles_scenarios.engine.target import Target

_STATUS: dict[Kind, int] = {"refused": 400, "served": 200, "closed": 403}
_FORBIDDEN = ("/private", "/orders/export")
"""Paths that a contractor's reader must not reach: no grant opens the one, a deny closes the other."""


def _ask(here: Bench, token: str, trick: Trick, *, role: str = "") -> Observation:
    return here.ask(token, with_reason=False, path=trick.path, role=role, connection="corpus")


def _must(here: Bench, right: bool, trick: Trick, seen: Observation, what: str) -> None:
    if not right:
        raise here.failed(f"{trick.path!r} ({trick.name}): expected {what}, got {_got(seen)}", seen, what)


def _got(seen: Observation) -> str:
    where = f" from the backend {seen.backend!r}" if seen.backend else ""
    return f"{seen.status}{where}" + (f" with the path {seen.path!r}" if seen.path else "")


def _judge(target: Target, *kinds: Kind) -> str:
    """Send every path of some classes, and require the answer of its class."""
    chosen = [one for one in tricks() if one.kind in kinds and (target.lane == "gate" or not one.proxy)]
    with bench(target, "policy") as here:
        token = here.token()
        for trick in chosen:
            seen = _ask(here, token, trick)
            open_ = trick.kind == "served"
            _must(here, seen.status == _STATUS[trick.kind], trick, seen, str(_STATUS[trick.kind]))
            _must(here, seen.allow == open_, trick, seen, "a backend" if open_ else "no backend")
            if open_ and target.lane == "gate":
                same = seen.path.partition("?")[0] == trick.forwarded
                _must(here, same, trick, seen, f"path {trick.forwarded!r}")
    return f"{len(chosen)} paths"


@check("policy.traversal.refused", "TRAVERSAL-REFUSED-001", lane="gate")
@check(
    "policy.traversal.refused-by-agent",
    "TRAVERSAL-REFUSED-001",
    title="The agent refuses the tricks on its own, whatever the proxy lets through",
)
def refused(target: Target) -> str:
    """Every trick of the corpus is refused with 400 at the proxy.

    By HAProxy or by the agent: the client cannot see which. Over SPOP by the agent alone.
    """
    return _judge(target, "refused")


@check("policy.traversal.served", "TRAVERSAL-SAME-001", lane="gate")
@check(
    "policy.traversal.served-by-agent",
    "TRAVERSAL-SAME-001",
    title="The agent judges odd but unambiguous paths as what they are",
)
def served(target: Target) -> str:
    """Odd but unambiguous paths are served, and the backend gets the path that was judged.

    Look-alikes of an open path are paths of their own: 403, never 400.
    """
    return _judge(target, "served", "closed")


@check("policy.traversal.backend", "TRAVERSAL-BACKEND-001", lane="gate")
def backend(target: Target) -> str:
    """No path of the corpus leads to what its caller may not reach, however careless the backend.

    The caller is a contractor and a reader whose export is denied. The check resolves the backend's path
    carelessly.
    """
    reached = 0
    with bench(target, "policy") as here:
        token = here.token(roles=["reader", "contractor"])
        for trick in tricks():
            seen = _ask(here, token, trick, role="reader")
            _must(here, seen.backend in ("", "orders-ro"), trick, seen, "no backend but orders-ro")
            if seen.backend:
                reached += 1
                meant = careless(seen.path)
                good = not any(meant == path or meant.startswith(f"{path}/") for path in _FORBIDDEN)
                _must(here, good, trick, seen, f"a path that no server resolves to {meant}")
        if not reached:
            raise here.failed("no path of the corpus reached any backend: the gate serves nothing at all")
    return f"{len(tricks())} paths, {reached} reached their backend"
