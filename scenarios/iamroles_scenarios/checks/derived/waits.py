"""One row for each call that an agent makes of others, and each way in which its answer never ends.

The *first* call of each row meets a fault that lasts; whoever calls again gets a sound answer. So an agent
that waits for ever shows twice: by a question that is answered late, and by a credential that is never
accepted although a second call would do. All rows are played at once, each with an issuer, or a host of STS,
of its own; a sound issuer and a sound host are asked beside them, and must not notice.

What bounds each wait and each buffer is a key of the policy. `BOUNDS` has one row for each such key and says
where its end is played; `tests/scenarios/test_derived.py` holds it against the schema, and the ways against
the faults that the mocks can make.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

from iamroles_scenarios.base.errors import SilenceError
from iamroles_scenarios.checks.derived import answers
from iamroles_scenarios.checks.derived.sitting import ALLOWED, Ask, Sitting, Wanted, question, refusal
from iamroles_scenarios.checks.fault.ground import own_suffix
from iamroles_scenarios.checks.identity.caller import ACTION, EDGE, session_of
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import WorldSpec
from iamroles_scenarios.engine.target import Target

WAYS = {
    "stall": "the request is read, and nothing comes",
    "drip": "a head in single bytes, without end",
    "hang": "the head, half of the body, and then nothing",
    "trickle": "a body in single bytes, without end",
    "endless": "a body without end, as fast as it is read",
}
"""Ways in which an answer never ends, by the fault of the mocks that makes it."""
ENDS = {
    "slow": "identity.kids.herd, policy.hold.in-flight",
    "cut": "identity.keys.*",
    "truncated": "identity.keys.*",
    "status": "identity.cold.first-keys, identity.sts.*",
    "redirect": "identity.cold.redirect, identity.sts.redirect",
    "malformed": "identity.sts.answer, identity.keys.*",
    "content-type": "identity.sts.answer",
    "oversized": "identity.keys.*",
    "patch": "identity.cold.mix-up",
}
"""Faults after which the caller knows that its call is over, and where they are played."""
BOUNDS = {
    "keys.timeout": "identity.derived.waits",
    "keys.refresh": "identity.keys.*",
    "keys.cooldown": "identity.kids.*",
    "keys.max_stale": "identity.keys.stale",
    "sts.timeout": "identity.derived.sts-waits",
    "sts.recheck": "identity.caller.ended",
    "issuers.leeway": "identity.derived.seconds",
    "issuers.max_lifetime": "identity.derived.issuers",
    "roles.max_lifetime": "identity.derived.seconds",
    "limits.max_lifetime": "identity.derived.issuers",
    "limits.max_token_bytes": "identity.derived.issuers",
    "agent.workers": "fire.worker.*",
    "agent.max_frame_size": "wire.size.*, wire.unread.bounded",
    "agent.max_connections": "wire.life.connection-limit",
    "agent.handshake_timeout": "wire.life.handshake-timeout",
    "agent.drain_timeout": "wire.unread.sigterm",
    "agent.decision_timeout": "tests/agent/serving/test_server.py",
    "audit.sync": "tests/agent/audit/test_audit_*.py",
    "identity_header.lifetime": "tests/scenarios/test_signed_identity.py",
    "identity_header.rotate": "tests/scenarios/test_signed_identity.py",
}
"""Every duration and every number of the policy, and where its end is played."""
_GIVE_UP = 5.0
"""Seconds, times the scale, for an answer: discovery and keys, or STS, may take half a second each."""
_RECOVERY = 8.0
"""Seconds, times the scale, until a call that hangs has been given up and another one made."""
_POLL = 0.05
_KEYS = {"refresh": "500ms", "cooldown": "500ms", "max_stale": "1h", "timeout": "500ms"}
_NOT_YET = refusal("keys_unavailable", "key_unknown", status={401, 503})
_NO_STS = refusal("sts_unavailable", status=503)


@dataclass(frozen=True, slots=True)
class Call:
    """What an agent asks others for."""

    endpoint: str
    """Of the mock that answers."""
    known: bool = False
    """Whether the agent has keys of this issuer by then."""


CALLS: Mapping[str, Call] = {
    "discovery": Call("discovery"),
    "the first key set": Call("jwks"),
    "a key set for a new key": Call("jwks", known=True),
}
"""Calls to issuers; those to STS have rows of their own."""


def _rows() -> Iterator[tuple[str, Call, str]]:
    """Name of the issuer, the call, the way."""
    for number, call in enumerate(CALLS.values()):
        for way in WAYS:
            yield f"w{number}-{way}", call, way


def _issuer(name: str, call: Call) -> dict[str, Any]:
    """An issuer whose keys are found by discovery, where that is what hangs."""
    found = {"jwks_uri": f"{{idp}}/{name}/jwks"} if call.endpoint == "jwks" else {}
    return {
        "name": name, "issuer": f"{{idp}}/{name}", "insecure_http": True, "audiences": ["edge"],
        "algorithms": ["ES256"], **found,
    }  # fmt: skip


@contextmanager
def _world(target: Target, suffix: str, **override: Any) -> Iterator[Sitting]:  # noqa: ANN401 - a policy's tables
    """A world that starts after the faults are there."""
    override["agent"] = {"drain_timeout": "1s"}
    spec = WorldSpec(policy="derived", override=override, own=True)
    place = target.worlds.start(spec, suffix, haproxy=False)
    with place.world, closing(Sitting(target, place)) as here, here.connected(_GIVE_UP):
        yield here


class _Slow:
    """Questions that hang on a call, put until each is answered as it must be in the end."""

    def __init__(self, here: Sitting, meanwhile: Wanted) -> None:
        self._here, self._meanwhile = here, meanwhile

    def put(self, asks: dict[str, Ask], beside: list[Ask]) -> None:
        """Ask all at once, beside others that must not notice; then until all are accepted."""
        here = self._here
        began = time.monotonic()
        deadline = began + here.seconds(_RECOVERY)
        while True:
            turn = [*asks.values(), *beside]
            try:
                found = here.answers(turn, window=len(turn))
            except SilenceError:
                waiting = "; ".join(ask.what for ask in asks.values())
                here.wrong(f"no answer within {_GIVE_UP:g} s while these calls hang: {waiting}")
                return
            here.judge(beside, found[len(asks) :])
            allowed = [answers.read(actions).get("allow") is True for actions in found[: len(asks)]]
            for ask, actions, good in zip(asks.values(), found, allowed, strict=False):
                wanted = ALLOWED if good else self._meanwhile
                here.judge([Ask(f"{ask.what}, which hangs", ask.check, wanted)], [actions])
            asks = {name: ask for (name, ask), good in zip(asks.items(), allowed, strict=True) if not good}
            if not asks:
                return
            if time.monotonic() > deadline:
                for ask in asks.values():
                    here.wrong(f"{ask.what}: still refused after {_RECOVERY:g} s, though a new call is sound")
                return
            time.sleep(_POLL)


@check("identity.derived.waits", "DERIVED-WAIT-001", features={"oidc"})
def waits(target: Target) -> str:
    """A call to an issuer that never ends is given up, in whichever way it does not end.

    Discovery and key sets, before any keys and for a new one.
    """
    suffix = own_suffix()
    rows = list(_rows())
    issuers = {name: target.worlds.issuer(f"{name}{suffix}") for name, _, _ in rows}
    for name, call, way in rows:
        if not call.known:
            issuers[name].fault(call.endpoint, way, times=1, seconds=0.2)
    tables = [_issuer(name, call) for name, call, _ in rows]
    with _world(target, suffix, keys=_KEYS, issuers=tables) as here:

        def ask(what: str, name: str, sub: str = "ann") -> Ask:
            token = here.token(name, key="ES256", roles=["kiosk"], sub=sub)
            return Ask(what, question(token), ALLOWED)

        sound = ask("a sound issuer beside calls that hang", "corp")
        known = [ask(name, name) for name, call, _ in rows if call.known]
        here.settle([sound, *known])
        here.put(known, "before its call hangs: ", turns=1)
        for name, call, way in rows:
            if call.known:
                issuers[name].fault(call.endpoint, way, times=1, seconds=0.2)
                issuers[name].rotate("ES256")
        shown = {call: what for what, call in CALLS.items()}
        asks = {name: ask(f"{shown[call]}: {WAYS[way]}", name, "bob") for name, call, way in rows}
        _Slow(here, _NOT_YET).put(asks, [sound])
        for name, _, _ in rows:
            issuers[name].clear()
    return f"{len(rows)} calls that do not end, {here.asked} questions"


@check("identity.derived.sts-waits", "DERIVED-WAIT-002", features={"sts"})
def sts_waits(target: Target) -> str:
    """A call to STS that never ends is given up, in whichever way it does not end.

    One host for each way; the credential is another one each time, so that no memory answers.
    """
    suffix, used = own_suffix(), count(100)
    hosts = {way: f"{way}{suffix}.sts.example" for way in ("sound", *WAYS)}
    tables = [
        {"name": way, "endpoint": "{sts}", "hosts": [host], "binding_header": "x-iam-edge",
         "binding_value": EDGE, "insecure_http": True, **({} if way == "sound" else {"timeout": "500ms"})}
        for way, host in hosts.items()
    ]  # fmt: skip
    cloud = target.stage.cloud
    with _world(target, suffix, sts=tables) as here:
        session = session_of(cloud, "kiosk")

        def ask(way: str) -> Ask:
            text = cloud.presign_caller_identity(session, EDGE, {"expires": next(used)}, host=hosts[way])
            return Ask(f"STS: {WAYS.get(way, 'a sound one beside calls that hang')}", question(text), ALLOWED)

        before = [ask(way) for way in hosts]
        here.put(before, "before: ", turns=1)
        for way in WAYS:
            cloud.fault(f"{ACTION}@{hosts[way]}", way, times=1, seconds=0.2)
        try:
            _Slow(here, _NO_STS).put({way: ask(way) for way in WAYS}, [ask("sound")])
        finally:
            for way in WAYS:
                cloud.clear(f"{ACTION}@{hosts[way]}")
    return f"{len(WAYS)} calls that do not end, {here.asked} questions"
