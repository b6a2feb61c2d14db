"""The keys of the signed identity change while traffic flows: whoever verifies by the published set never
meets a header that it cannot verify.

A back end fetches the keys now and then, and again when it meets a name that it does not know
(docs/backends.md). Here somebody fetches them all the while, from each place where the agent publishes them;
each header must verify by every set that a back end could hold when it came.
"""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import jwt

from iamroles_scenarios.checks.fault.ground import own_suffix
from iamroles_scenarios.checks.proxy.traffic import Gate
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import Expectation, RequestSpec, WorldSpec
from iamroles_scenarios.declarations.timeline import WindowSpec
from iamroles_scenarios.engine.fire import kindle
from iamroles_scenarios.engine.ledger import NEVER, Entry, Flow
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.errors import CheckFailed, Evidence, TooSlow
from iamroles_scenarios.traffic.polling import NANO, now

_GATE = "https://gate.example.com"
_PLACE = re.compile(r"http://[^\s/]+:(\d+)(/\S*jwks)\b")
_ROTATE = 4.0
"""Seconds, times the scale, that a key signs, and is published before and after."""
_LONG = 2.6 * _ROTATE
"""Seconds, times the scale, of traffic: two changes."""
_CACHE = _ROTATE / 2
"""Seconds, times the scale, that a back end holds a set without a fetch."""
_EACH = 0.2
"""Seconds between two fetches."""


@dataclass
class _Sets:
    """Key sets as they were fetched."""

    gate: Gate
    found: list[tuple[int, int, dict[str, Any]]] = field(default_factory=list)
    """When each was asked for and when it was there, nanoseconds; keys by `kid`."""
    faults: list[str] = field(default_factory=list)

    def fetch(self) -> None:
        """Once from each place."""
        agent = self.gate.world.agent
        host = agent.spop_address.rpartition(":")[0]
        for port, path in sorted(set(_PLACE.findall("\n".join(agent.lines())))):
            begun = now()
            try:
                with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=10) as answer:
                    keys = json.load(answer)["keys"]
                self.found.append((begun, now(), {key["kid"]: key for key in keys}))
            except (OSError, ValueError, KeyError, TypeError) as error:
                self.faults.append(f"the keys cannot be fetched from {path}: {error}")

    @contextmanager
    def fetched(self) -> Iterator[None]:
        """All the while."""
        end = threading.Event()

        def go_on() -> None:
            while not end.wait(_EACH):
                self.fetch()

        thread = threading.Thread(target=go_on, daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()

    def held(self, at: int, cache: int) -> Iterator[dict[str, Any]]:
        """Those that a back end may hold at a moment, and the one that it would fetch then."""
        for begun, ended, keys in self.found:
            if begun >= at:
                yield keys
                return
            if begun >= at - cache and ended <= at:
                yield keys


def _why_not(entry: Entry, keys: dict[str, Any], name: str) -> str:
    """Why a back end that holds these keys refuses a header; "" where it does not."""
    values = [value for header, value in entry.seen.headers if header == "x-iam-identity"]
    if len(values) != 1:
        return f"{len(values)} signed identities"
    try:
        kid = jwt.get_unverified_header(values[0])["kid"]
        if kid not in keys:
            return f"its key {kid!r} is not among those published, {sorted(keys)}"
        claims = jwt.decode(
            values[0],
            jwt.PyJWK(keys[kid]),
            algorithms=["ES256"],
            audience="orders-ro",
            issuer=_GATE,
            options={
                "require": ["iss", "aud", "sub", "iat", "exp"],
                "verify_exp": False,
                "verify_iat": False,
            },
        )
    except (jwt.PyJWTError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    if claims["sub"] != name:
        return f"it is {claims['sub']!r}'s"
    return "" if claims["exp"] * NANO > entry.sent else "it was dead when it was asked for"


@check(
    "fire.identity.keys",
    requirements=["FIRE-IDENTITY-001"],
    lane="gate",
    title="while its keys change, each signed identity verifies by every key set that a back end may hold",
    features={"identity"},
)
def keys(target: Target) -> str:
    """Two keys' lives in a few seconds, in two processes."""
    listen = "127.0.0.1:0" if target.stage.host.startswith("127.") else "0.0.0.0:0"
    override = {
        "agent": {"workers": 2},
        "metrics": {"listen": listen},
        "identity_header": {"issuer": _GATE, "lifetime": "2s", "rotate": f"{_ROTATE * target.scale:g}s"},
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
        sets = _Sets(gate)
        sets.fetch()
        if not sets.found:
            raise gate.failed("; ".join(sets.faults) or "its log names no place where it publishes its keys")
        with sets.fetched(), kindle(place.world, flows, rate=60, scale=target.scale) as fire:
            fire.until(_LONG)
        found = fire.judge(WindowSpec(check="all", between=["begin", "end"]))
        if found.problems:
            raise gate.failed(f"{found}: {'; '.join(found.problems)}")
        held, signed = 0, set()
        for entry in fire.ledger.between(0, NEVER):
            for known in sets.held(entry.received, round(_CACHE * target.scale * NANO)):
                if why := _why_not(entry, known, entry.question.flow.name):
                    sent, received = entry.shown
                    raise CheckFailed(
                        f"a back end cannot verify a signed identity: {why}",
                        Evidence(sent, "verified", received, logs=place.world.logs()),
                    )
                held += 1
            signed.add(_kid(entry))
        if not held:
            raise TooSlow("no key set was fetched in time: raise the time scale")
        if len(signed) < 2:
            raise gate.failed(f"one key signed for {_LONG:g} s, though `rotate` is {_ROTATE:g} s")
        return f"{found}; {len(signed)} keys signed, {held} times a header met a set"


def _kid(entry: Entry) -> str:
    value = next(value for header, value in entry.seen.headers if header == "x-iam-identity")
    return str(jwt.get_unverified_header(value)["kid"])
