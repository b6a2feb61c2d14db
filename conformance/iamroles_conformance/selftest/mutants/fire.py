"""Mutants that show only under traffic.

Rotation of keys, issuers, policies and certificates must cost no request, and what is gone must open nothing.
A process, one agent of two, or the proxy's old worker may die.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.control.document import POLICY
from iamroles_agent.control.slots import Members
from iamroles_agent.identity_header import KeyRing
from iamroles_agent.processes import identity_keys as part
from iamroles_agent.processes import worker
from iamroles_agent.processes.agent import Agent
from iamroles_agent.processes.supervisor import Supervisor
from iamroles_agent.serving import accepting
from iamroles_agent.serving.gate import Gate
from iamroles_agent.serving.server import Server, _Peer
from iamroles_agent.tokens.keyring import Keyring
from iamroles_agent.tokens.sts import StsVerifier
from iamroles_conformance.selftest.mutants.edits import replaced, without
from iamroles_conformance.selftest.mutants.gate import asks_nothing, first_key, no_renewal
from iamroles_conformance.selftest.mutants.override import after, around, before, fail, rescue, setting
from iamroles_conformance.selftest.registry import mutant

# --- keys, sessions, issuers

_sessions: list[str] = []
_issuers: dict[str, Any] = {}


@mutant("fire.first-session", "FIRE-STS-001", "takes the second session of a role for a replay")
@around(StsVerifier, "_identity")
def first_session(sound: Any, self: Any, question: Any, caller: Any) -> Any:
    found = sound(self, question, caller)
    _sessions.append(found.principal)
    return found if found.principal == _sessions[0] else found._replace(roles=())


@mutant("fire.last-key", "FIRE-IDENTITY-001", "makes no more keys than those of its start")
@around(part, "keep_rotating")
async def last_key(_sound: Any, _header: Any, _link: Any) -> None:
    await asyncio.Event().wait()


mutant("fire.newest-key", "FIRE-KEY-001", "refuses the old key as soon as a new one is published")(first_key)
mutant("fire.removed-key", "FIRE-KEY-002", "goes on with keys that were withdrawn while it is busy")(
    no_renewal
)
mutant("fire.first-keys", "FIRE-KEY-003", "knows the keys of its start alone")(no_renewal, asks_nothing)
mutant("fire.faulty-keys", "FIRE-KEY-003", "answers 503 until a renewal brings a new key")(
    asks_nothing,
    rescue(Keyring, "obtain", Refusal)(
        lambda refusal, *_: fail(Refusal(Reason.KEYS_UNAVAILABLE, refusal.detail))
    ),
)
mutant("fire.session-for-ever", "FIRE-STS-002", "asks STS once for each credential, however long it is used")(
    around(StsVerifier, "_identity")(lambda sound, *args: sound(*args)._replace(check_again=None))
)
mutant("fire.newest-issuer", "FIRE-ISSUER-001", "refuses the issuer it had as soon as another is added")(
    around(worker, "rules_of")(lambda sound, config: dict(list(sound(config).items())[-1:]))
)
mutant("fire.removed-issuer", "FIRE-ISSUER-002", "goes on with issuers that were taken out")(
    around(worker, "rules_of")(lambda sound, config: (_issuers.update(sound(config)), dict(_issuers))[1])
)
mutant("fire.unpublished-key", "FIRE-IDENTITY-001", "publishes the key that signs, and no other")(
    around(KeyRing, "jwks")(lambda _sound, self, now: {"keys": [self.signing(now).jwk]})
)
mutant("fire.start-keys", "FIRE-IDENTITY-001", "forgets at its end the keys that came since its start")(
    around(Agent, "_save")(
        lambda sound, self, document, running: sound(
            self, document if running else self._document, running=running
        )
    )
)

# --- reloads

_closed_until = 0.0
_peers: set[Any] = set()
_reloaded = 0.0


@after(_Peer, "connection_made")
def _made(self: Any, _transport: Any) -> None:
    _peers.add(self)
    if asyncio.get_running_loop().time() < _closed_until:
        self.abort()


@around(Gate, "replace")
def _restarts(sound: Any, self: Any, policy: Any) -> None:
    global _closed_until  # noqa: PLW0603 - a mutant's memory
    reload = policy is not self.policy
    sound(self, policy)
    if not reload:  # the agent lost a key
        return
    _closed_until = asyncio.get_running_loop().time() + 1.5
    for peer in _peers:
        peer.abort()
    _peers.clear()


@mutant("fire.late-policy", "FIRE-POLICY-002", "confirms a reload half a second too early")
@around(Gate, "replace")
def late_policy(sound: Any, self: Any, policy: Any) -> None:
    asyncio.get_running_loop().call_later(0.5, sound, self, policy)


@before(Gate, "replace")
def _stalls(self: Any, policy: Any) -> None:
    global _reloaded
    if policy is self.policy:  # the agent lost a key
        return
    loop = asyncio.get_running_loop()
    former, _reloaded = _reloaded or loop.time(), loop.time()
    for transport in [peer._transport for peer in _peers]:
        if not transport.is_closing():
            transport.pause_reading()
            loop.call_later(0.75 * (_reloaded - former), transport.resume_reading)


mutant("fire.reload-stalls", "FIRE-POLICY-003", "reads nothing at a reload, the longer the later it comes")(
    _made, _stalls
)
mutant("fire.reload-restarts", "FIRE-POLICY-001", "closes its connections at a reload, takes none for 1.5 s")(
    _made, _restarts
)
mutant("fire.certificate-for-ever", "FIRE-CERTIFICATE-001", "lets nobody replace the proxy's certificate")(
    replaced("mode 600 level admin", "mode 600 level operator")
)

# --- deaths and restarts

_forked: set[int] = set()
_first: list[Any] = []
_leaving: list[bool] = []


@mutant("fire.no-replacement", "FIRE-WORKER-001", "replaces no process that died")
@around(Supervisor, "_fork")
def no_replacement(sound: Any, self: Any, effect: Any) -> None:
    if effect.slot < 0 or effect.slot not in _forked:
        _forked.add(effect.slot)
        sound(self, effect)


@before(Supervisor, "_fork")
def _remembers(self: Any, _effect: Any) -> None:
    if not _first:
        _first.append(self.plane.document.parts[POLICY])


@mutant("fire.born-old", "FIRE-WORKER-002", "gives a replacement the policy of the agent's start", _remembers)
@before(Supervisor, "_live")
def _born_old(self: Any, effect: Any, _channel: Any) -> None:
    if effect.why:
        now = self.plane.document
        self.plane.changes.document = replace(now, parts={**now.parts, POLICY: _first[0]})


@around(Server, "drain")
async def _lingers(sound: Any, self: Any, **how: Any) -> None:
    _leaving.append(True)
    await asyncio.sleep(1.0)
    await sound(self, **how)


@around(Gate, "judge")
async def _turns_away(sound: Any, self: Any, check: Any, context: Any, key: Any) -> Any:
    return self.failed(context, "it is leaving") if _leaving else await sound(self, check, context, key)


mutant("fire.turns-away", "FIRE-PAIR-002", "refuses requests after SIGTERM, while it accepts for a second")(
    _lingers,
    _turns_away,
    around(Gate, "recall")(lambda sound, *asked: None if _leaving else sound(*asked)),
)
mutant("fire.one-agent", "FIRE-PAIR-001", "asks one agent of two")(
    without("server agent-2 ", name="iam-routes.cfg")
)
mutant(
    "fire.old-worker-killed", "FIRE-PROXY-001 FIRE-CERTIFICATE-001", "ends the proxy's old worker at a reload"
)(replaced("hard-stop-after 1h", "hard-stop-after 1ms"))

mutant("fire.hangs-for-ever", "FIRE-WORKER-003", "leaves a process that hangs alone")(
    around(Members, "quiet")(lambda _sound, _self, _slot: 0.0)
)
mutant("fire.waits-for-the-hung", "FIRE-WORKER-003", "leaves a new connection to a worker that hangs")(
    setting(accepting, "PATIENCE", 60.0)
)
