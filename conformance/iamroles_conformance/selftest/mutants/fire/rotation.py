"""Mutants of rotation under traffic: what is planned costs nobody a request, what is gone opens nothing."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from iamroles_agent.identity_header import KeyRing
from iamroles_agent.processes import identity_part as part
from iamroles_agent.processes import worker
from iamroles_agent.serving.gate import Gate
from iamroles_agent.serving.server import _Peer
from iamroles_agent.tokens.jwks import KeySource
from iamroles_agent.tokens.keys import KeySet
from iamroles_agent.tokens.sts import StsVerifier
from iamroles_conformance.selftest.mutants.gate.proxy import text
from iamroles_conformance.selftest.mutants.override import around
from iamroles_conformance.selftest.registry import mutant

_no_renewal = around(KeySource, "_schedule")(lambda _sound, _self, _delay: None)


async def _asks_nothing(_sound: Any, _self: Any, _kid: str) -> None:
    return


mutant("fire.newest-key", "FIRE-KEY-001", "refuses the old key as soon as a new one is published")(
    around(KeySet, "__init__")(lambda sound, self, keys, dropped=(): sound(self, keys[:1], dropped))
)
mutant("fire.removed-key", "FIRE-KEY-002", "goes on with keys that were withdrawn while it is busy")(
    _no_renewal
)
mutant("fire.first-keys", "FIRE-KEY-003", "knows the keys of its start alone")(
    _no_renewal, around(KeySource, "_ask")(_asks_nothing)
)
_sessions: list[str] = []


@mutant("fire.first-session", "FIRE-STS-001", "takes the second session of a role for a replay")
@around(StsVerifier, "_identity")
def first_session(sound: Any, self: Any, question: Any, caller: Any, digest: bytes) -> Any:
    found = sound(self, question, caller, digest)
    _sessions.append(found.principal)
    return found if found.principal == _sessions[0] else found._replace(roles=())


mutant("fire.session-for-ever", "FIRE-STS-002", "asks STS once for each credential, however long it is used")(
    around(StsVerifier, "_identity")(lambda sound, *args: sound(*args)._replace(check_again=None))
)

# --- reloads
_closed_until = 0.0
_peers: set[Any] = set()


@around(_Peer, "connection_made")
def _made(sound: Any, self: Any, transport: Any) -> None:
    sound(self, transport)
    _peers.add(self)
    if asyncio.get_running_loop().time() < _closed_until:
        self.abort()


@mutant(
    "fire.reload-restarts",
    "FIRE-POLICY-001",
    "closes its connections at a reload, and takes none for 1.5 s",
    _made,
)
@around(Gate, "replace")
def _starts_anew(sound: Any, self: Any, policy: Any, authenticator: Any) -> None:
    global _closed_until  # noqa: PLW0603 - a mutant's memory
    reload = policy is not self.policy
    sound(self, policy, authenticator)
    if not reload:  # the agent lost a key
        return
    _closed_until = asyncio.get_running_loop().time() + 1.5
    for peer in _peers:
        peer.abort()
    _peers.clear()


@mutant("fire.late-policy", "FIRE-POLICY-002", "confirms a reload half a second too early")
@around(Gate, "replace")
def late_policy(sound: Any, self: Any, policy: Any, authenticator: Any) -> None:
    asyncio.get_running_loop().call_later(0.5, sound, self, policy, authenticator)


@mutant("fire.reload-stalls", "FIRE-POLICY-003", "stands still for 1.5 s at a reload")
@around(Gate, "replace")
def reload_stalls(sound: Any, self: Any, policy: Any, authenticator: Any) -> None:
    if policy is not self.policy:  # else the agent lost a key
        time.sleep(1.5)
    sound(self, policy, authenticator)


mutant("fire.newest-issuer", "FIRE-ISSUER-001", "refuses the issuer it had as soon as another is added")(
    around(worker, "rules_of")(lambda sound, config: dict(list(sound(config).items())[-1:]))
)
_issuers: dict[str, Any] = {}


@mutant("fire.removed-issuer", "FIRE-ISSUER-002", "goes on with issuers that were taken out")
@around(worker, "rules_of")
def removed_issuer(sound: Any, config: Any) -> Any:
    _issuers.update(sound(config))
    return dict(_issuers)


# --- the identity's keys
mutant("fire.unpublished-key", "FIRE-IDENTITY-001", "publishes the key that signs, and no other")(
    around(KeyRing, "jwks")(lambda _sound, self: {"keys": [self.signing(time.time()).jwk]})
)


@mutant("fire.last-key", "FIRE-IDENTITY-001", "makes no more keys than those of its start")
@around(part, "keep_turning")
async def last_key(_sound: Any, _header: Any, _link: Any) -> None:
    await asyncio.Event().wait()


# --- the proxy's certificate
mutant(
    "fire.certificate-for-ever",
    "FIRE-CERTIFICATE-001",
    "lets nobody replace the proxy's certificate while it runs",
    proxy=True,
)(text(lambda cfg: cfg.replace("mode 600 level admin", "mode 600 level operator")))
