"""Mutants of the proxy lane: an agent, or a configuration, that HAProxy's own workings bring down."""

from __future__ import annotations

from typing import Any

from iamroles_agent.serving.server import _Peer
from iamroles_conformance.selftest.mutants.edits import pairs_in
from iamroles_conformance.selftest.mutants.gate.proxy import one_behind, stays_down, text
from iamroles_conformance.selftest.mutants.override import around
from iamroles_conformance.selftest.mutants.wire.life import _settings
from iamroles_conformance.selftest.registry import mutant


@mutant(
    "proxy.newest-only",
    "PROXY-THREADS-001 PROXY-RELOAD-001",
    "drops its other connections when a new one comes",
)
@around(_Peer, "connection_made")
def newest_only(sound: Any, self: Any, transport: Any) -> None:
    for peer in tuple(self._server.peers):
        peer.abort()
    sound(self, transport)


mutant(
    "proxy.one-behind",
    "PROXY-PIPELINE-001",
    "gives each question the answer of the one before, on whatever connection",
)(one_behind)


@mutant("proxy.needs-pipelining", "PROXY-PIPELINE-002", "refuses a peer without pipelining")
@pairs_in
def needs_pipelining(pairs: dict[bytes, Any]) -> dict[bytes, Any]:
    if b"pipelining" in pairs.get(b"capabilities", (None, b"pipelining"))[1]:
        return pairs
    return {name: value for name, value in pairs.items() if name != b"supported-versions"}


mutant("proxy.few-connections", "PROXY-RELOAD-002", "has room for three connections")(
    _settings(max_connections=3)
)


@mutant("proxy.unhealthy", "PROXY-HEALTH-001", "takes a health check for a HELLO without a size")
@pairs_in
def unhealthy(pairs: dict[bytes, Any]) -> dict[bytes, Any]:
    if b"healthcheck" not in pairs:
        return pairs
    return {name: value for name, value in pairs.items() if name != b"max-frame-size"}


mutant(
    "proxy.connects-only",
    "PROXY-HEALTH-002",
    "has a health check that only connects, which a frozen agent's kernel answers",
    proxy=True,
)(text(lambda text: text.replace("    option spop-check\n", ""), name="iam-routes.cfg"))
mutant("proxy.stays-down", "PROXY-HEALTH-003", "never takes an agent back that was out", proxy=True)(
    stays_down
)
_TAG = "    http-request add-header X-IAM-Principal  %[var(txn.iam.principal)]"
_KEEP = (
    "    http-request set-var(sess.iam_who) var(txn.iam.principal) unless { var(sess.iam_who) -m found }\n"
)
mutant(
    "proxy.first-come",
    "PROXY-LEAK-001",
    "tags a connection's requests with the first one's principal",
    proxy=True,
)(text(lambda text: text.replace(_TAG, _KEEP + _TAG.replace("txn.iam.principal", "sess.iam_who"))))
