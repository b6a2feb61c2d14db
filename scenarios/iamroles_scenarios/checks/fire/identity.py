"""The keys of the signed identity change while traffic flows: whoever verifies by the published set never
meets a header that it cannot verify.

A back end fetches the keys now and then, and again when it meets a name that it does not know
(docs/backends.md). Here somebody fetches them all the while, from each place where the agent publishes them;
each header must verify by every set that a back end could hold when it came.
"""

from __future__ import annotations

from contextlib import closing

from iamroles_scenarios.checks.fault.ground import own_suffix
from iamroles_scenarios.checks.proxy.traffic import Gate
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import Expectation, RequestSpec, WorldSpec
from iamroles_scenarios.declarations.timeline import WindowSpec
from iamroles_scenarios.engine.fire import kindle
from iamroles_scenarios.engine.key_sets import GATE, KeySets, kid_of, listen_on, why_not
from iamroles_scenarios.engine.ledger import NEVER, Flow
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.errors import CheckFailed, Evidence, TooSlow

_ROTATE = 4.0
"""Seconds, times the scale, that a key signs, and is published before and after."""
_LONG = 2.6 * _ROTATE
"""Seconds, times the scale, of traffic: two changes."""
_CACHE = _ROTATE / 2
"""Seconds, times the scale, that a back end holds a set without a fetch."""


@check(
    "fire.identity.keys",
    requirements=["FIRE-IDENTITY-001"],
    lane="gate",
    title="while its keys change, each signed identity verifies by every key set that a back end may hold",
    features={"identity"},
    long=True,
)
def keys(target: Target) -> str:
    """Two keys' lives in a few seconds, in two processes."""
    override = {
        "agent": {"workers": 2},
        "metrics": {"listen": listen_on(target.stage)},
        "identity_header": {"issuer": GATE, "lifetime": "2s", "rotate": f"{_ROTATE * target.scale:g}s"},
    }
    spec = WorldSpec(policy="orders", override=override, own=True)
    settings = {"IAM_TIMEOUT_PROCESSING": "20s"}
    place = target.worlds.start(spec, own_suffix(), settings=settings)
    served = Expectation(status=200, allow=True, backend="orders-ro")
    with place.world, closing(Gate(target, place)) as gate:
        flows = [
            Flow(name, RequestSpec(), gate.token(sub=name, exp="+15m"), served)
            for name in ("alice", "bob", "carol")
        ]
        sets = KeySets([gate.world.agent], _CACHE * target.scale)
        sets.fetch()
        if not sets:
            raise gate.failed("; ".join(sets.faults) or "its log names no place where it publishes its keys")
        with sets.fetched(), kindle(place.world, flows, rate=60, scale=target.scale) as fire:
            fire.until(_LONG)
        found = fire.judge(WindowSpec(check="all", between=["begin", "end"]))
        if found.problems:
            raise gate.failed(f"{found}: {'; '.join(found.problems)}")
        held, signed = 0, set()
        for entry in fire.ledger.between(0, NEVER):
            for known in sets.held(entry.received):
                if why := why_not(entry, known):
                    sent, received = entry.shown
                    raise CheckFailed(
                        f"a back end cannot verify a signed identity: {why}",
                        Evidence(sent, "verified", received, logs=place.world.logs()),
                    )
                held += 1
            signed.add(kid_of(entry))
        if not held:
            raise TooSlow("no key set was fetched in time: raise the time scale")
        if len(signed) < 2:
            raise gate.failed(f"one key signed for {_LONG:g} s, though `rotate` is {_ROTATE:g} s")
        return f"{found}; {len(signed)} keys signed, {held} times a header met a set"
