"""Mutants of the proxy family: an agent or a configuration that HAProxy's own workings bring down."""

from __future__ import annotations

import ssl
from typing import Any

from iamroles_agent.serving.server import Server, _Peer
from iamroles_agent.serving.tls import Tls
from iamroles_conformance.selftest.mutants.edits import pairs_in, replaced, without
from iamroles_conformance.selftest.mutants.gate import one_behind, stays_down
from iamroles_conformance.selftest.mutants.override import around, before, setting
from iamroles_conformance.selftest.mutants.wire.connections import settings
from iamroles_conformance.selftest.registry import mutant
from iamroles_tools.haproxy import render

# --- HAProxy's configuration at its edge: hosts, queries, the record, headers of the client

_SET_URI = "    http-request set-uri %[pathq]"
_ROOTED = "    acl iam_path_rooted path_beg /\n"
mutant("proxy.no-host", "PROXY-HOST-001", "asks and routes a request without a host")(
    without("str(host_ambiguous)")
)
mutant("proxy.other-host", "PROXY-HOST-002", "tells the backend a host of its own")(
    replaced(_SET_URI, f"    http-request set-header Host internal if !iam_origin_form\n{_SET_URI}")
)
mutant("proxy.asterisk-is-root", "PROXY-ASTERISK-001", "takes OPTIONS * for a path that is open")(
    replaced(
        _ROOTED,
        "    http-request set-uri /orders if { url -m str * }\n"
        f"    http-request set-method GET if METH_OPTIONS\n{_ROOTED}",
    )
)
mutant("proxy.normalises-query", "PROXY-QUERY-001", "decodes the query together with the path")(
    without("http-request set-pathq")
)
mutant("proxy.record-uncut", "PROXY-RECORD-001", "records the client's words whole: the line is cut")(
    replaced(",bytes(0,260),", ","), replaced(",bytes(0,1024),", ",")
)
mutant("proxy.records-tokens", "PROXY-RECORD-002", "records a token that stands in the path")(
    replaced('regsub("(^|', 'regsub("x^(^|')
)
mutant("proxy.records-presigned", "PROXY-RECORD-003", "records a pre-signed request that stands in the path")(
    replaced('regsub("(i|', 'regsub("x^(i|')
)
mutant("proxy.believes-certificates", "PROXY-SPOKEN-002", "passes a certificate of the client's own word")(
    replaced("|client[^a-z0-9]cert.*|", "|")
)
mutant("proxy.tunnel-unasked", "PROXY-UPGRADE-002", "passes a 101 that answers no upgrade")(
    without("iam_note_unasked")
)
mutant("proxy.believes-forwarded", "PROXY-SPOKEN-001", "passes the client's claims about who it speaks for")(
    without("http-request del-header ^(x[^a-z0-9]((http")
)
mutant("proxy.adds-upgrade", "PROXY-UPGRADE-001", "adds Connection: upgrade to every Upgrade")(
    replaced("{ req.hdr_cnt(upgrade) eq 1 } iam_upgrade iam_upgrade_to", "{ req.hdr_cnt(upgrade) eq 1 }")
)

# --- connections, health, pairs of agents


def _asks_no_certificate(sound: Any, self: Any) -> ssl.SSLContext:
    self._names = set()
    context: ssl.SSLContext = sound(self)
    context.verify_mode = ssl.CERT_NONE
    return context


@before(_Peer, "connection_made")
def _newest_only(self: Any, _transport: Any) -> None:
    for peer in tuple(self._server.peers):
        peer.abort()


def _without(pairs: dict[bytes, Any], name: bytes) -> dict[bytes, Any]:
    return {key: value for key, value in pairs.items() if key != name}


@mutant("proxy.needs-pipelining", "PROXY-PIPELINE-002", "refuses a peer without pipelining")
@pairs_in
def needs_pipelining(pairs: dict[bytes, Any]) -> dict[bytes, Any]:
    pipelining = b"pipelining" in pairs.get(b"capabilities", (None, b"pipelining"))[1]
    return pairs if pipelining else _without(pairs, b"supported-versions")


_TAG = "    http-request add-header X-IAM-Principal  %[var(txn.iam.principal)]"
_KEEP = "    http-request set-var(sess.iam_who) var(txn.iam.principal) unless { var(sess.iam_who) -m found }"
mutant("proxy.newest-only", "PROXY-THREADS-001 PROXY-RELOAD-001", "drops its connections for a new one")(
    _newest_only
)
mutant("proxy.one-behind", "PROXY-PIPELINE-001", "gives each question the answer before, of any peer")(
    one_behind
)
mutant("proxy.few-connections", "PROXY-RELOAD-002", "has room for three connections")(
    settings(max_connections=3)
)
mutant("proxy.unhealthy", "PROXY-HEALTH-001", "takes a health check for a HELLO without a size")(
    pairs_in(lambda pairs: _without(pairs, b"max-frame-size") if b"healthcheck" in pairs else pairs)
)
mutant("proxy.connects-only", "PROXY-HEALTH-002", "only connects as a health check: a frozen agent passes")(
    replaced("    option spop-check\n", "", name="iam-routes.cfg")
)
mutant("proxy.stays-down", "PROXY-HEALTH-003", "never takes an agent back that was out")(stays_down)
mutant("proxy.first-come", "PROXY-LEAK-001", "tags a connection's requests with the first principal")(
    replaced(_TAG, f"{_KEEP}\n{_TAG.replace('txn.iam.principal', 'sess.iam_who')}")
)

# --- which process answers, and which may ask

mutant("proxy.proof-any-authority", "PROXY-PROOF-001", "believes any certificate of the agent's")(
    replaced(" verify required", " verify none", name="iam-routes.cfg")
)
mutant("proxy.proof-any-name", "PROXY-PROOF-001", "believes any name of the agent's authority")(
    replaced(" verifyhost agent.iamroles.test", "", name="iam-routes.cfg")
)
mutant("proxy.proof-plain", "PROXY-PROOF-001", "ignores agent.tls: speaks plain SPOP, and renders it")(
    around(render, "_agent_tls")(lambda _sound, _settings, _agent: ""),
    before(Server, "_connect")(lambda self, _sock: setattr(self, "tls", None)),
)
mutant("proxy.asker-any-authority", "PROXY-PROOF-002", "answers a peer without a certificate")(
    around(Tls, "context")(_asks_no_certificate)
)
mutant("proxy.asker-any-name", "PROXY-PROOF-002", "answers any name of the authority")(
    setting(Tls, "accepts", lambda _self, _certificate: True)
)
