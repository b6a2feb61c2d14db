"""Streams of bound tokens: what prolongs them (SPEC.md 9.8), and revocations that name a key (9.6, 12.17)."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from iamroles_scenarios.checks.bound.rows import BASES, Asking, answer_of, certificate, key, thumbprints
from iamroles_scenarios.checks.live.fixture import LiveBench, live_bench
from iamroles_scenarios.checks.live.renewing import RENEWING, WORLD, outlive
from iamroles_scenarios.checks.live.stream import Stream, StreamShape
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.tables import table
from iamroles_scenarios.engine.http import HttpConnection
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.jose.proof import combined, hashed, jwk_of, proof, thumbprint

_ORIGIN = "https://gate.example"
_REVOKING = {"live", "dpop", "certificate"}
_LIFE, _WITHIN = 5.0, 10.0
"""Seconds, times the scale: of a stream's first credential, and for an answer."""
_CERTIFIED = "certificate of "
_BALANCERS: dict[str, Any] = table("proofs")["proxied"]["header"]["client_certificate"]


@dataclass(frozen=True, slots=True)
class _Proven(StreamShape):
    """A request that shows a proof of a key, or a certificate; "": a bearer's."""

    owner: str = ""

    def head(self, path: str, token: str) -> bytes:
        plain = StreamShape.head(self, path, token)
        for one in filter(None, self.owner.split(" and ")):
            if one.startswith(_CERTIFIED):
                der = certificate(one.removeprefix(_CERTIFIED))
                shown = f"Client-Cert: :{base64.b64encode(der).decode()}:\r\nAuthorization"
                plain = plain.replace(b"Authorization", shown.encode())
            else:
                shown = proof(key(one), token, time.time(), url=_ORIGIN + path)
                shown = f"DPoP: {shown}\r\nAuthorization: DPoP "
                plain = plain.replace(b"Authorization: Bearer ", shown.encode())
        return plain


def _member(owner: str) -> tuple[str, str]:
    """Return the member of `cnf` that names a key or certificate."""
    if owner.startswith(_CERTIFIED):
        return "x5t#S256", hashed(certificate(owner.removeprefix(_CERTIFIED)))
    return "jkt", thumbprint(jwk_of(key(owner)))


def _token(here: LiveBench, sub: str, owner: str, exp: object = "+10m") -> str:
    cnf = {"cnf": dict(map(_member, owner.split(" and ")))} if owner else {}
    return here.token(sub=sub, claims={"sid": f"session of {sub}", **cnf}, key="ES256", exp=exp)


def _open(here: LiveBench, sub: str, owner: str, end: object) -> Stream:
    return here.open(_Proven("websocket", owner=owner), _token(here, sub, owner, end), RENEWING)


def _expect(here: LiveBench, sub: str, owner: str, status: int) -> None:
    """Ask with a fresh credential of a person, bound to a key or not."""
    proxy, raw = here.world.proxy, _Proven("events", owner=owner).head(RENEWING, _token(here, sub, owner))
    raw = raw.replace(b"Accept: text/event-stream\r\n", b"")
    with closing(HttpConnection((proxy.host, proxy.port), here.seconds(_WITHIN))) as line:
        if (seen := line.exchange("GET", raw).status) != status:
            raise here.failed(f"a request of {sub} with the key {owner!r}: status {seen}, not {status}")


@contextmanager
def _renewing(target: Target, owner: str, *, revoking: bool = False) -> Iterator[LiveBench]:
    tables: dict[str, Any] = {
        "issuers": [{"name": "corp", "bound": "accepted"}],
        "dpop": {"origins": [_ORIGIN], "replay": "none"},  # HAProxy 2.6 cannot count proofs beside renewals
    }
    if not target.lacks(["certificate"]):
        tables["client_certificate"] = _BALANCERS
    with live_bench(target, owner, WORLD, revoking=revoking, **tables) as here:
        yield here


_FRESH = (
    ("ann", "client", "client"),
    ("ben", "client", "stranger"),
    ("cat", "client", ""),
    ("dan", "", "client"),
    ("eve", "certificate of client", "certificate of client"),
    ("fay", "certificate of client", "certificate of stranger"),
    ("gus", "certificate of client", ""),
    ("hal", "stranger and certificate of client", "stranger"),
)
"""Who opens a stream, the key to which the token is bound, and that of the fresh token; "": none."""


@check("bound.stream.renew", "BOUND-STREAM-001", lane="gate", features={"live", "renew", "dpop"})
def renew(target: Target) -> None:
    """A fresh credential prolongs a stream only if both are bound to the same key, or neither to any."""
    with _renewing(target, "bound.stream.renew") as here:
        rows = [row for row in _FRESH if "certificate" not in row[1] or not target.lacks(["certificate"])]
        end = here.end(_LIFE)
        streams = [_open(here, sub, owner, end) for sub, owner, _ in rows]
        for sub, _, fresh in rows:
            _expect(here, sub, fresh, 200)
        here.in_time(end - 1, "the questions with fresh credentials")
        same = [stream for stream, (_, owner, fresh) in zip(streams, rows, strict=True) if owner == fresh]
        here.must_expire([stream for stream in streams if stream not in same])
        outlive(here, same, math.inf, "a fresh credential of the same key was seen")


_SHOWN = (
    ("{x5t}", "{x5t}", "credential_revoked"),
    ("{x5t}", None, "credential_revoked"),
    ("{x5t}", "{x5t of other}", "credential_revoked"),
    ("{x5t of other}", "{x5t of other}", "allow"),
)
"""A token's certificate, the certificate that is shown, and the answer after the revocation of the first."""
_NOBODY = dict.fromkeys(("principal", "session", "issuer"), "")
"""The thief of a bound token has proven nothing (3.1)."""


@check("bound.stream.revoked", "BOUND-REVOKE-001", "BOUND-STREAM-001", lane="gate", features=_REVOKING)
def revoked(target: Target) -> None:
    """A revocation by `keys` ends and refuses what is bound to a key or certificate, and nothing else.

    A policy with `bound = "required"` ends a bearer's alone, also if it asks for other proofs. One without
    `dpop` ends what a proof opened, and one with `bound = "refused"` what a certificate opened.
    """
    with _renewing(target, "bound.stream.revoked", revoking=True) as here, here.asking():
        asking = Asking(here)
        mine = [_open(here, sub, owner, "+15m") for sub, owner, _ in _FRESH if owner.endswith("client")]
        whose = (("ben", "stranger"), ("cat", ""), ("dan", "certificate of stranger"))
        others = [_open(here, *who, "+15m") for who in whose]
        stranger = [thumbprint(jwk_of(key("stranger")))]  # in rows that fit no credential
        beside: list[dict[str, Any]] = [{"id": "other", "keys": stranger, "principals": ["ann"]}]
        beside.append({"id": "spared", "keys": stranger, "issued_before": 0})
        keys = ["x" * 43, thumbprint(jwk_of(key("client"))), thumbprints()["x5t"]]
        here.revoke_all([*beside, {"id": "now", "keys": keys}])
        here.must_end(mine, "the revocation of its key")
        here.must_last(others, "the revocation of another key")
        for x5t, shown, answer in _SHOWN:
            bound = {"roles": ["reader"], "claims": {"cnf": {"x5t#S256": x5t}}}
            row = combined(
                BASES["certificate"], {"token": bound, "ask": {"certificate": shown, "path": RENEWING}}
            )
            expected = answer_of(answer) | (_NOBODY if shown != x5t else {})
            what = f"a token of the certificate {x5t}, shown {shown}"
            here.ask_all([asking.question(what, row, expected)])
        for sub, owner, status in (("ann", "client", 401), ("ben", "stranger", 200), ("ann", "", 200)):
            _expect(here, sub, owner, status)
        if not target.lacks(["reload"]):
            (first, *rest), former = here.loan.policy["issuers"], here.loan.policy["dpop"]
            required = {**here.loan.policy, "issuers": [{**first, "bound": "required"}, *rest]}
            required["dpop"] = {**former, "origins": ["https://other.example"], "nonce": True}
            here.must_reload(required, "its issuer must bind, by other proofs")
            here.must_end(others[1:2], "the reload by which its issuer must bind")
            here.must_last(others[::2], "the reload by which its issuer must bind")
            without = {name: value for name, value in required.items() if name != "dpop"}
            here.must_reload(without, "without the table `dpop`")
            here.must_end(others[:1], "the reload that asks for no proofs")
            here.must_last(others[2:], "the reload that asks for no proofs", 0.0)
            unbound = {name: value for name, value in without.items() if name != "client_certificate"}
            unbound["issuers"] = [{**first, "bound": "refused"}, *rest]
            here.must_reload(unbound, "its issuer must not bind")
            here.must_end(others[2:], "the reload by which its issuer must not bind")
