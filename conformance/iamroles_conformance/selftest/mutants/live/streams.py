"""Mutants of live streams: what ends too late, what does not end, what ends that should live."""

from __future__ import annotations

import time
from typing import Any

from iamroles_agent.live import cutter
from iamroles_agent.live import judge as judging
from iamroles_agent.live.console import ConsoleError
from iamroles_agent.live.cutter import Cutter
from iamroles_agent.live.judge import Ends
from iamroles_agent.processes import attach
from iamroles_agent.serving.gate import Gate
from iamroles_agent.spop import actions
from iamroles_agent.tokens.keys import KeySet
from iamroles_conformance.selftest.mutants.gate.proxy import text
from iamroles_conformance.selftest.mutants.override import around, setting
from iamroles_conformance.selftest.registry import Override, mutant

# The agent judges streams anew for a minute after its start, and would end those whose credential is over.
mutant(
    "live.ends-a-minute-late",
    "LIVE-EXPIRY-001 LIVE-EXPIRY-002 LIVE-IDLE-001",
    "tells the proxy an end of access a minute after the credential's, and cuts nothing",
)(
    around(actions, "set_var")(
        lambda sound, scope, name, kind, value: sound(
            scope, name, kind, value + 60 if name == "expires" else value
        )
    ),
    around(cutter, "is_stream")(lambda _sound, _answer, _row: False),
)
mutant(
    "live.streams-anywhere",
    "LIVE-REFUSE-001",
    "lets upgrades and event streams into every backend",
    proxy=True,
)(
    text(
        lambda found: "".join(
            line
            for line in found.splitlines(keepends=True)
            if "upgrade" not in line and "event-stream" not in line
        ),
        name="iam-routes.cfg",
    )
)


def _filter(old: str, new: str) -> Override:
    return text(lambda found: found.replace(old, new), name="iam-live.lua")


mutant(
    "live.needs-the-agent",
    "LIVE-ALONE-001",
    "is not woken at the credential's end, so what is silent waits for the agent",
    proxy=True,
)(_filter("filter.wake_time(math.min(left, LONGEST))", ""))
mutant(
    "live.proxys-own-clock",
    "LIVE-CLOCK-001",
    "measures by the proxy's own clock, which stays behind when the host halts it",
    proxy=True,
)(
    _filter('txn.f:date(0, "ms")', "1000 * core.now().sec + core.now().usec // 1000"),
    setting(cutter, "GRACE", 60.0),
)


@mutant("live.any-of-several-keys", "LIVE-KEY-002", "looks for no stream's key where its issuer has several")
@around(judging, "lost")
def _any_of_several(sound: Any, grounds: Any, issuer: Any, keys: Any) -> Any:
    found = sound(grounds, issuer, keys)
    return "" if found == "key" and keys is not None and len(list(keys)) > 1 else found


@mutant(
    "live.audience-unseen",
    "LIVE-POLICY-002",
    "does not judge a stream anew by issuer, audience and algorithm",
)
@around(judging, "lost")
def audience_unseen(sound: Any, grounds: Any, issuer: Any, keys: Any) -> Any:
    return "key" if sound(grounds, issuer, keys) == "key" else ""


@mutant("live.cuts-by-address", "LIVE-H2-001", "cuts whatever stream has the client's address and port")
@around(cutter, "is_stream")
def by_address(sound: Any, answer: str, row: Any) -> Any:
    return sound(answer, row) or f"source={row.source}" in answer.partition("\n")[0]


mutant("live.own-streams-only", "LIVE-AGENTS-001", "leaves alone what another agent let in")(
    setting(cutter, "NEIGHBOUR", 3600.0)
)


@mutant(
    "live.all-workers-or-none",
    "LIVE-RELOAD-002",
    "cuts nothing while one of the proxy's workers does not answer",
)
@around(Cutter, "_read")
async def all_or_none(sound: Any, self: Any, pid: int) -> Any:
    found = await sound(self, pid)
    if pid in self._unread:
        raise ConsoleError(f"worker {pid} is silent")
    return found


mutant(
    "live.deaf",
    "LIVE-POLICY-001 LIVE-KEY-001 LIVE-REVOKE-001",
    "judges an open stream once, and not again when policy, keys or revocations change",
)(
    setting(Cutter, "changed", lambda self: None),
    setting(Cutter, "revoked", lambda self: None),
    setting(cutter, "SETTLE", 0.0),
)
mutant(
    "live.revocations-alone",
    "LIVE-POLICY-001 LIVE-KEY-001",
    "looks for an open stream in the revocations alone when policy or keys change",
)(setting(Cutter, "changed", Cutter.revoked))
mutant(
    "live.revokes-nothing",
    "LIVE-REVOKE-001 LIVE-REVOKE-002",
    "reads revocations and does not put them in force",
)(setting(Gate, "revoke", lambda self, revocations: None))


@mutant("live.keys-unseen", "LIVE-KEY-001", "lets streams live whose key has left its issuer's set")
@around(attach, "judge")
def _keys_unseen(sound: Any, *args: Any, **kwargs: Any) -> Any:
    return sound(*args, **{**kwargs, "sources": {}})


_met: set[str] = set()
"""Keys of all sets that this process has read."""


@around(KeySet, "__init__")
def _meets(sound: Any, self: Any, found: Any, *rest: Any) -> None:
    sound(self, found, *rest)
    _met.update(key.kid for key in found)


@mutant(
    "live.keys-left-unseen",
    "LIVE-KEY-001",
    "ends nothing for keys that left their set while it was away",
    _meets,
)
@around(judging, "_gone")
def _left_unseen(sound: Any, identity: Any, *rest: Any) -> Any:
    gone = sound(identity, *rest)
    return None if gone and gone.cause == judging.KEY_REMOVED and identity.key_id not in _met else gone


@mutant("live.cuts-everybody", "LIVE-KEEP-001", "cuts all streams when anybody is revoked")
@around(attach, "judge")
def everybody(sound: Any, *args: Any, **kwargs: Any) -> Any:
    return Ends(0, "revoked") if kwargs["revocations"].rows else sound(*args, **kwargs)


@mutant(
    "live.cuts-by-recycled-number",
    "LIVE-KEEP-001",
    "cuts the stream that has a pointer now, without looking whose it is",
    setting(cutter, "is_stream", lambda answer, row: True),
)
@around(cutter, "pointers")
def _any_pointer(sound: Any, answer: str) -> Any:
    found = sound(answer)
    others = [
        pointer for source, place in found.items() if not source.startswith("unix") for pointer in place
    ]
    return dict.fromkeys(found, others[::-1])


@mutant("live.new-worker-only", "LIVE-RELOAD-001", "reaches only the newest worker of the proxy")
@around(cutter, "workers")
def newest(sound: Any, answer: str) -> Any:
    return sound(answer)[:1]


@mutant("live.forgets-at-restart", "LIVE-RESTART-001", "knows only the streams that began since it started")
def forgets() -> None:
    started = time.time()
    around(cutter, "rows")(lambda sound, answer: [row for row in sound(answer) if row.since >= started])()
