"""Mutants of live streams and their renewal: what ends too late or not at all, what ends that should live."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

from iamroles_agent.base.identity import Identity
from iamroles_agent.live import cutter, proxy_worker, renewal, shutdown
from iamroles_agent.live import judge as judging
from iamroles_agent.live.cutter import Cutter
from iamroles_agent.live.judge import EXPIRED, REVOKED, Ends
from iamroles_agent.live.revocations import NONE, Revocation, Revocations
from iamroles_agent.live.ticket import Ticket
from iamroles_agent.processes import cutting, watch, worker
from iamroles_agent.serving.gate import Gate
from iamroles_agent.spop import actions
from iamroles_agent.tokens.keys import KeySet
from iamroles_conformance.selftest.mutants.edits import replaced, without
from iamroles_conformance.selftest.mutants.override import after, around, setting
from iamroles_conformance.selftest.mutants.policy.workers import THIS, born
from iamroles_conformance.selftest.registry import Override, both, mutant
from iamroles_tools.haproxy import render

# --- when a stream ends by itself

# It cuts nothing either: the agent judges streams again for seconds after its start, and would end these.
mutant(
    "live.ends-a-minute-late", "LIVE-EXPIRY-001 LIVE-EXPIRY-002 LIVE-IDLE-001", "ends streams a minute late"
)(
    around(actions, "set_var")(
        lambda sound, scope, name, kind, value: sound(
            scope, name, kind, value + 60 if name == "expires" else value
        )
    ),
    setting(shutdown, "is_stream", lambda _answer, _stream: False),
)
mutant("live.streams-anywhere", "LIVE-REFUSE-001", "lets upgrades and event streams into every backend")(
    without("upgrade", "event-stream", name="iam-routes.cfg")
)
mutant("live.needs-the-agent", "LIVE-ALONE-001", "is not woken at the credential's end: the agent must cut")(
    replaced("filter.wake_time(math.min(left, longest))", "", name="iam-live.lua")
)
mutant("live.proxys-own-clock", "LIVE-CLOCK-001", "uses the proxy's clock, which stops while it is frozen")(
    replaced('txn.f:date(0, "ms")', "1000 * core.now().sec + core.now().usec // 1000", name="iam-live.lua"),
    setting(proxy_worker, "GRACE", 60.0),
)
mutant("live.last-byte", "LIVE-EXPIRY-001", "passes bytes for 0.8 s after the credential's end")(
    replaced('.iam.expires")) or 0) - self.early', '.iam.expires")) or 0) + 800', name="iam-live.lua"),
    setting(proxy_worker, "GRACE", 60.0),
)
mutant("live.a-moment-late", "LIVE-EXPIRY-003", "ends each stream 10 to 40 ms after its credential")(
    replaced('.iam.expires")) or 0) - self.early', '.iam.expires")) or 0) + self.early', name="iam-live.lua")
)
mutant("live.looks-once", "LIVE-CHANGE-001", "reads open streams for a quarter of a second after a change")(
    setting(proxy_worker, "SETTLE", 0.25)
)
_MEDIA_TYPE = "reg -i ^text/event-stream([[:space:];]|$)"
mutant("live.types-by-letter", "LIVE-REFUSE-002", "knows an event stream by small letters alone")(
    replaced(_MEDIA_TYPE, _MEDIA_TYPE.replace(" -i", ""), name="iam-routes.cfg")
)
mutant("live.types-by-beginning", "LIVE-REFUSE-002", "refuses any type that begins as an event stream's")(
    replaced(_MEDIA_TYPE, "beg -i text/event-stream", name="iam-routes.cfg")
)

# --- which streams are judged again, and how


def _lost(edit: Any) -> Override:
    """Change which ground a stream is found to have lost: `edit(found, keys)`."""
    return around(judging, "lost")(
        lambda sound, identity, entry, limits, keys, now: edit(
            sound(identity, entry, limits, keys, now), keys
        )
    )


def _refused(what: str, *, fresh: bool = False) -> Override:
    """Let streams live whose request, with a fresh credential or their own, is refused for a reason now."""

    def judge(sound: Any, ticket: str, expires: int, *rest: Any, **how: Any) -> Any:
        found = sound(ticket, expires, *rest, **how)
        kept = found.detail.startswith(f"now refused: {what}") and bool(how["fresh"]) >= fresh
        return Ends(expires, EXPIRED) if kept else found

    return around(cutting, "judge")(judge)


def _later(seconds: float) -> Any:
    return lambda sound, self: asyncio.get_running_loop().call_later(seconds, sound, self)


def _judged(edit: Any) -> Override:
    """Change arguments of `cutting.judge`; `edit` gets them by name, and returns those that change."""
    return around(cutting, "judge")(lambda sound, *args, **how: sound(*args, **{**how, **edit(how)}))


mutant("live.scopes-unseen", "LIVE-POLICY-004", "ends no stream that its scopes no longer permit")(
    _refused("scope_insufficient")
)
mutant("live.denies-unseen", "LIVE-POLICY-004", "ends no stream that a deny closes")(
    _refused("denied_by_rule")
)


@mutant("live.end-kept", "LIVE-POLICY-005", "keeps the end that a stream began with")
@around(cutting, "judge")
def end_kept(sound: Any, ticket: Any, expires: Any, *args: Any, **kwargs: Any) -> Any:
    found = sound(ticket, expires, *args, **kwargs)
    return replace(found, at=expires) if found.cause == EXPIRED else found


mutant("live.late", "LIVE-POLICY-001", "looks at open streams 9 s after a change")(
    around(Cutter, "changed")(_later(9.0)), around(Cutter, "revoked")(_later(9.0))
)

_met: set[str] = set()
"""Keys of all sets that this process has read."""


@after(KeySet, "__init__")
def _meets(_self: Any, found: Any, *_rest: Any) -> None:
    _met.update(key.kid for key in found)


@mutant("live.keys-left-unseen", "LIVE-KEY-001", "ends nothing for keys that left while it was away", _meets)
@around(judging, "_gone")
def _left_unseen(sound: Any, identity: Any, *rest: Any) -> Any:
    gone = sound(identity, *rest)
    return None if gone and gone.cause == judging.KEY_REMOVED and identity.key_id not in _met else gone


@mutant("live.cuts-everybody", "LIVE-KEEP-001", "cuts all streams when anybody is revoked")
@around(cutting, "judge")
def everybody(sound: Any, *args: Any, **kwargs: Any) -> Any:
    return Ends(0, "revoked") if kwargs["revocations"].rows else sound(*args, **kwargs)


mutant("live.any-of-several-keys", "LIVE-KEY-002", "looks for no stream's key where its issuer has several")(
    _lost(lambda found, keys: "" if found == "key" and keys is not None and len(list(keys)) > 1 else found)
)
mutant("live.audience-unseen", "LIVE-POLICY-002", "does not judge issuer, audience and algorithm again")(
    _lost(lambda found, _keys: "key" if found == "key" else "")
)
mutant("live.settings-unseen", "LIVE-POLICY-003", "judges accounts, lifetime and type once")(
    _lost(lambda found, _keys: "" if found in ("account", "lifetime", "typ") else found)
)
mutant("live.claims-unseen", "LIVE-POLICY-003", "goes by the claims that were read when a stream began")(
    _lost(lambda found, _keys: "" if found == "rules" else found)
)
mutant("live.deaf", "LIVE-POLICY-001 LIVE-KEY-001 LIVE-REVOKE-001", "judges no open stream a second time")(
    setting(Cutter, "changed", lambda self: None),
    setting(Cutter, "revoked", lambda self: None),
    setting(proxy_worker, "SETTLE", 0.0),
    setting(proxy_worker, "UNLISTED", 0.0),
)
mutant("live.half-closed", "LIVE-POLICY-001 LIVE-REVOKE-001", "ends no tunnel whose client closed its side")(
    replaced("if not txn.req:may_recv() then", "if false then", name="iam-live.lua")
)
mutant("live.revocations-alone", "LIVE-POLICY-001 LIVE-KEY-001", "ends streams for revocations alone")(
    setting(Cutter, "changed", Cutter.revoked)
)
mutant("live.revokes-nothing", "LIVE-REVOKE-001 LIVE-REVOKE-002", "puts no revocations in force")(
    setting(Gate, "revoke", lambda self, revocations: None)
)


def _fitting(edit: Any) -> Override:
    """Change which keys of a revocation count: `edit` gets a row, and returns those that change."""
    return around(Revocation, "fits")(lambda sound, row, *who: sound(row.model_copy(update=edit(row)), *who))


mutant("live.revokes-any-issuer", "LIVE-REVOKE-003", "ignores which issuers a revocation names")(
    _fitting(lambda row: {"issuers": []})
)
_NAMES = ("roles", "principals", "sessions", "credentials", "issuers")
mutant("live.first-key-alone", "LIVE-REVOKE-006", "goes by the first key of a revocation alone")(
    _fitting(lambda row: {name: [] for name in list(filter(row.__getattribute__, _NAMES))[1:]})
)
mutant("live.bound-revoked", "LIVE-REVOKE-006", "revokes what was issued in the second of `issued_before`")(
    _fitting(lambda row: {"issued_before": row.issued_before and row.issued_before + 1})
)
mutant("live.believes-signed-dates", "LIVE-REVOKE-004", "spares what a caller of STS dated later")(
    setting(Identity, "dated_by_caller", False)
)


@mutant("live.empty-is-nothing", "LIVE-REVOKE-005", "believes an empty file: nothing is revoked")
@around(watch, "read")
def empty_is_nothing(sound: Any, path: Any, *most: Any) -> Any:
    return Revocations() if path.exists() and not path.read_bytes() else sound(path, *most)


mutant("live.keys-unseen", "LIVE-KEY-001", "lets streams live whose key has left its issuer's set")(
    _judged(lambda _: {"sources": {}})
)

# --- which streams are found and cut


@mutant("live.all-workers-or-none", "LIVE-RELOAD-002", "cuts nothing while one of the workers is silent")
@around(Cutter, "_read")
async def all_or_none(sound: Any, self: Any, found: Any) -> Any:
    read = await sound(self, found)
    return [] if any(worker.unread or worker.reading for worker in found) else read


@around(shutdown, "pointers")
def _any_pointer(sound: Any, answer: str) -> Any:
    found = sound(answer)
    others = [
        pointer for source, those in found.items() if not source.startswith("unix") for pointer in those
    ]
    return dict.fromkeys(found, others[:-5:-1])


@mutant("live.forgets-at-restart", "LIVE-RESTART-001", "knows only the streams that began since it started")
@Override
def forgets() -> None:
    started = time.time()
    around(proxy_worker, "streams")(
        lambda sound, answer: [one for one in sound(answer) if one.since >= started]
    )()
    around(proxy_worker, "waiting")(lambda sound, answer, known: [])()


mutant("live.cuts-by-address", "LIVE-H2-001", "cuts whatever stream has the client's address and port")(
    around(shutdown, "is_stream")(
        lambda sound, answer, stream: (
            sound(answer, stream) or f"source={stream.source}" in answer.partition("\n")[0]
        )
    ),
    setting(shutdown, "_FEW", 1000),
)
mutant("live.finds-by-address", "LIVE-ADDRESS-001", "looks for streams by their client's address alone")(
    setting(shutdown, "numbered", lambda answer: {}), setting(shutdown, "_FEW", 1000)
)
mutant("live.waiting-unseen", "LIVE-WAIT-001", "knows of no request before its answer begins")(
    around(proxy_worker, "waiting")(lambda sound, answer, known: [])
)
mutant("live.own-streams-only", "LIVE-AGENTS-001", "leaves alone what another agent let in")(
    setting(proxy_worker, "NEIGHBOUR", 3600.0)
)
mutant("live.cuts-by-recycled-number", "LIVE-KEEP-001", "cuts by pointer, without looking whose it is now")(
    _any_pointer, setting(shutdown, "is_stream", lambda answer, stream: True)
)
mutant("live.new-worker-only", "LIVE-RELOAD-001", "reaches only the newest worker of the proxy")(
    around(cutter, "workers")(lambda sound, answer: sound(answer)[:1])
)
mutant("live.end-without-leeway", "LIVE-KEEP-001", "judges a stream again without its issuer's leeway")(
    around(judging, "accepted_now")(lambda sound, who, of: sound(who, of.model_copy(update={"leeway": 0.0})))
)

# --- renewal


def _all_backends(policy: Any) -> frozenset[str]:
    return frozenset(backend.name for backend in policy.config.backends)


def _whoever(*left_out: int) -> Override:
    """Leave out of `whose`, which compares a fresh credential with a stream, these words."""

    def whose(sound: Any, ticket: Any) -> Any:
        return tuple(word for at, word in enumerate(sound(ticket)) if at not in left_out)

    return both(*(around(module, "whose")(whose) for module in (judging, renewal)))


@mutant("live.renews-beyond", "LIVE-RENEW-001", "prolongs streams a minute beyond the fresh credential's end")
@around(cutting, "judge")
def beyond(sound: Any, *args: Any, **kwargs: Any) -> Any:
    found = sound(*args, **kwargs)
    return replace(found, at=found.at + 60) if kwargs["fresh"] and found.cause == EXPIRED else found


@around(cutting, "judge")
def _role_unseen(sound: Any, ticket: str, *args: Any, **kwargs: Any) -> Any:
    if kwargs["fresh"]:
        opener, fresh = Ticket.decode(ticket), Ticket.decode(kwargs["fresh"])
        who = fresh.identity._replace(roles=opener.identity.roles)
        kwargs["fresh"] = replace(fresh, identity=who, role=opener.role).encode()
    return sound(ticket, *args, **kwargs)


def _of_any_address(self: Any, stream: Any) -> Any:
    who = judging.whose(stream.decoded())
    return {one for key, found in self._known.items() if key[1:] == who for one in found}


@mutant("live.renewal-revives", "LIVE-RENEW-004", "lets a prolonged stream outlive its own credential")
@around(cutting, "judge")
def revives(sound: Any, *args: Any, **kwargs: Any) -> Any:
    found = sound(*args, **kwargs)
    if kwargs["fresh"] and found.cause == REVOKED and "prolonged" not in found.detail:
        return sound(*args, **{**kwargs, "revocations": NONE})
    return found


mutant("live.renews-nothing", "LIVE-RENEW-001 LIVE-RENEW-006", "ends streams with their first credential")(
    setting(cutting, "renewing", lambda policy: frozenset())
)
mutant("live.renews-everywhere", "LIVE-RENEW-002", "prolongs streams in every backend that has them")(
    around(render, "_streams")(
        lambda sound, backend: sound(backend.model_copy(update={"renew": backend.streams}))
    ),
    setting(cutting, "renewing", _all_backends),
    setting(judging, "renewing", _all_backends),
)
mutant("live.renews-for-others", "LIVE-RENEW-003", "lets another principal of the role prolong a stream")(
    _whoever(1)
)
mutant("live.renews-across-sessions", "LIVE-RENEW-003", "lets the principal's other sessions prolong it")(
    _whoever(2)
)
mutant("live.renews-across-roles", "LIVE-RENEW-003", "lets the session's other role prolong a stream")(
    _whoever(3), _role_unseen
)
mutant("live.renewal-forgives", "LIVE-RENEW-004 LIVE-RENEW-005", "ignores revocations of prolonged streams")(
    _judged(lambda how: {"revocations": NONE} if how["fresh"] else {})
)
mutant(
    "live.renews-any-address", "LIVE-RENEW-007", "lets another address of the same caller prolong a stream"
)(setting(renewal.Successors, "matching", _of_any_address))
mutant("live.renews-unpermitted", "LIVE-RENEW-007", "never judges a stream's request by what prolongs it")(
    _refused("", fresh=True)
)
mutant("live.reload-forgets", "LIVE-RENEW-006", "forgets at a reload what is to prolong streams")(
    replaced("gpt0 peers iam-peers", "gpt0")
)
mutant("live.renewal-forgotten", "LIVE-RENEW-006", "forgets at a restart what prolonged a stream")(
    setting(proxy_worker.ProxyWorker, "unjudged", lambda self, stream: False)
)


@mutant("live.replacement-cuts", "LIVE-DEATH-001", "cuts nothing once a worker was replaced", born)
@around(worker, "cutting")
def replacement_cuts(sound: Any, gate: Any, audit: Any, metrics: Any, master: Any) -> Any:
    return sound(gate, audit, metrics, None if THIS["why"] else master)
