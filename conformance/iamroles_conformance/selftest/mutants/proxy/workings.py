"""Mutants of the proxy lane: an agent, or a configuration, that HAProxy's own workings bring down."""

from __future__ import annotations

from typing import Any

from iamroles_agent.server import _Peer
from iamroles_conformance.selftest.mutants.edits import pairs_in
from iamroles_conformance.selftest.mutants.gate.proxy import _text, one_behind, stays_down
from iamroles_conformance.selftest.mutants.override import override
from iamroles_conformance.selftest.mutants.wire.life import _settings
from iamroles_conformance.selftest.registry import mutant


@mutant(
    "proxy.newest-only",
    kills=["PROXY-THREADS-001", "PROXY-RELOAD-001"],
    title="drops its other connections when a new one comes",
)
def newest_only() -> None:
    def make(sound: Any) -> Any:
        def connection_made(self: Any, transport: Any) -> None:
            for peer in tuple(self._server.peers):
                peer.abort()
            sound(self, transport)

        return connection_made

    override(_Peer, "connection_made", make)


mutant(
    "proxy.one-behind",
    kills=["PROXY-PIPELINE-001"],
    title="gives each question the answer of the one before, on whatever connection",
)(one_behind)


@mutant("proxy.needs-pipelining", kills=["PROXY-PIPELINE-002"], title="refuses a peer without pipelining")
def needs_pipelining() -> None:
    def edit(pairs: dict[bytes, Any]) -> dict[bytes, Any]:
        if b"pipelining" in pairs.get(b"capabilities", (None, b"pipelining"))[1]:
            return pairs
        return {name: value for name, value in pairs.items() if name != b"supported-versions"}

    pairs_in(edit)


@mutant("proxy.few-connections", kills=["PROXY-RELOAD-002"], title="has room for three connections")
def few_connections() -> None:
    _settings(max_connections=3)


@mutant(
    "proxy.unhealthy", kills=["PROXY-HEALTH-001"], title="takes a health check for a HELLO without a size"
)
def unhealthy() -> None:
    def edit(pairs: dict[bytes, Any]) -> dict[bytes, Any]:
        if b"healthcheck" not in pairs:
            return pairs
        return {name: value for name, value in pairs.items() if name != b"max-frame-size"}

    pairs_in(edit)


@mutant(
    "proxy.connects-only",
    kills=["PROXY-HEALTH-002"],
    title="has a health check that only connects, which a frozen agent's kernel answers",
    proxy=True,
)
def connects_only() -> None:
    _text(lambda text: text.replace("    option spop-check\n", ""), name="iam-routes.cfg")


mutant(
    "proxy.stays-down",
    kills=["PROXY-HEALTH-003"],
    title="never takes an agent back that was out",
    proxy=True,
)(stays_down)


@mutant(
    "proxy.first-come",
    kills=["PROXY-LEAK-001"],
    title="tags a connection's requests with the first one's principal",
    proxy=True,
)
def first_come() -> None:
    keep = "http-request set-var(sess.iam_who) var(txn.iam.principal) unless { var(sess.iam_who) -m found }\n"
    tag = "    http-request set-header X-IAM-Principal  %[var(txn.iam.principal)]"
    kept = f"    {keep}{tag.replace('txn.iam.principal', 'sess.iam_who')}"
    _text(lambda text: text.replace(tag, kept))
