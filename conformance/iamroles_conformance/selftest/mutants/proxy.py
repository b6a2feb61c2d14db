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

# --- HAProxy's configuration before an agent that answers whatever it likes

_YES = "int(200) if iam_yes iam_ok iam_ends !iam_faulty"
_UNROUTED, _ROUTE = "default_backend iam-unrouted", "use_backend route-%[var(txn.iam.backend)]"
_ANY = "use_backend %[var(txn.iam.backend)] if { var(txn.iam.backend) -m beg route- }"
_VERDICTS = {
    "status-alone": ("lets in whatever has the status 200", _YES, "int(200) if iam_ok iam_ends"),
    "allow-alone": ("lets in whatever has `allow`", _YES, "int(200) if iam_yes iam_ends"),
    "endless": ("lets in without an end", " iam_ends !iam_faulty", " !iam_faulty"),
    "default-backend": ("has a default for an unknown backend", _UNROUTED, "default_backend route-orders-ro"),
    "any-section": ("lets the agent name any route's section", _ROUTE, f"{_ANY}\n    {_ROUTE}"),
    "any-case": ("reads a backend's name in small letters", ".backend)]\n", ".backend),lower]\n"),
    "any-refusal": (
        "lets an unknown refusal on",
        "unless iam_pass\n",
        "if !iam_pass { var(txn.iam.status) -m int 200 400 401 403 503 }\n",
    ),
}
for _name, (_what, _old, _new) in _VERDICTS.items():
    mutant(f"proxy.verdict-{_name}", "PROXY-VERDICT-001", _what)(replaced(_old, _new))

# --- HAProxy's configuration before requests of other shapes

_IAM, _OWN = "^x[^a-z0-9]+iam([^a-z0-9]|$) -m reg", "http-request del-header Authorization"
_WHO = "%[var(txn.iam.principal)]\n"
_401 = 'string "Unauthorized\\n" hdr WWW-Authenticate "%[var(txn.iam_challenge)]"'
_CHALLENGE = '    http-request set-var-fmt(txn.iam_challenge) "Bearer realm=\\"${IAM_REALM}\\"" if'
_SHAPES = {
    "h2-headers": (
        1,
        "passes the client's identity headers over HTTP/2",
        _IAM,
        f"{_IAM} if {{ fc_http_major 1 }}",
    ),
    "post-token": (1, "forwards the credential of a POST", _OWN, f"{_OWN} if !METH_POST"),
    "preflight-bare": (1, "tags no preflight", _WHO, _WHO.replace("\n", " if !METH_OPTIONS\n")),
    "method-read": (
        1,
        "makes a GET of methods that it does not know",
        _OWN,
        f"{_OWN}\n    http-request set-method GET if {{ method PROPFIND }}",
    ),
    "body-says-why": (
        2,
        "tells the reason in a body",
        _401,
        _401.replace('string "Unauthorized', 'lf-string "%[var(txn.iam.reason)]'),
    ),
}
for _name, (_number, _what, _old, _new) in _SHAPES.items():
    mutant(f"proxy.shape-{_name}", f"PROXY-SHAPE-00{_number}", _what)(replaced(_old, _new))
mutant("proxy.shape-preflight-open", "PROXY-SHAPE-002", "lets each OPTIONS in, for the sake of CORS")(
    replaced(_CHALLENGE, f"    http-request set-var(txn.iam_verdict) int(200) if METH_OPTIONS\n{_CHALLENGE}"),
    replaced(_UNROUTED, f"use_backend route-orders-ro if METH_OPTIONS\n    {_UNROUTED}"),
)

# --- HAProxy's configuration that asks another question than the client did

_STRIP, _SPOE = "    http-request set-var(txn.iam_requested_role) req.fhdr(x-iam-role)\n", "iam.spoe.cfg"
_BY = "req.hdr(x-forwarded-host)"
_TO = f"    http-request set-header Host %[{_BY}] if {{ {_BY} -m found }}\n"
_ASKED = {
    "splits-roles": ("takes the last of a list of roles", "haproxy.cfg", _STRIP, _STRIP.replace(".f", ".")),
    "splits-credentials": ("takes the last credential of a list", _SPOE, "=req.fhdr(auth", "=req.hdr(auth"),
    "any-role-case": ("asks for a role in small letters", _SPOE, "requested_role)", "requested_role),lower"),
    "any-method-case": ("asks for a method in capitals", _SPOE, "method=method", "method=method,upper"),
    "any-path-case": ("asks for a path in small letters", _SPOE, "path=path", "path=path,lower"),
    "forwarded-host": ("believes X-Forwarded-Host", "haproxy.cfg", _STRIP, _TO + _STRIP),
}
for _name, (_what, _file, _old, _new) in _ASKED.items():
    mutant(f"proxy.asked-{_name}", "PROXY-ASKED-001", _what)(replaced(_old, _new, name=_file))

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
mutant("proxy.old-forgets", "PROXY-AGE-001", "gives the last answer of an old connection without a verdict")(
    before(_Peer, "_is_old")(lambda self, _asked=-1: setattr(self._connection, "_recall", lambda *_: b""))
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
    around(render, "agent_tls")(lambda _sound, _settings, _agent: ""),
    before(Server, "_connect")(lambda self, _sock: setattr(self, "tls", None)),
)
mutant("proxy.asker-any-authority", "PROXY-PROOF-002", "answers a peer without a certificate")(
    around(Tls, "context")(_asks_no_certificate)
)
mutant("proxy.asker-any-name", "PROXY-PROOF-002", "answers any name of the authority")(
    setting(Tls, "accepts", lambda _self, _certificate: True)
)
