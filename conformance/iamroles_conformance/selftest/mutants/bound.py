"""Mutants of bound tokens: BOUND and DPOP, in the agent and in the gate's configuration."""

from __future__ import annotations

import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any

from iamroles_agent.base.encoding import decode_base64url
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.live import judge, renewal
from iamroles_agent.live.revocations import Revocations
from iamroles_agent.serving.gate import Gate
from iamroles_agent.spop import messages
from iamroles_agent.tokens import proof
from iamroles_agent.tokens.claims import ClaimRules
from iamroles_agent.tokens.keys import ALGORITHMS
from iamroles_agent.tokens.proof import Bindings, ProofRules
from iamroles_conformance.selftest.mutants import edits as edit
from iamroles_conformance.selftest.mutants.override import after, around, rescue, setting
from iamroles_conformance.selftest.registry import Override, both, mutant
from iamroles_tools.haproxy import render

_BINDING = ("token_bound", "binding_mismatch", "proof_invalid")
_MEMORY: dict[str, Any] = {}


class _Any(str):
    """Differs from no text."""

    __slots__ = ()
    __ne__ = lambda *_: False  # noqa: E731
    __hash__ = str.__hash__


def _base64url(octets: bytes) -> str:
    return urlsafe_b64encode(octets).rstrip(b"=").decode()


def _ath(token: bytes) -> dict[str, str]:
    return {"ath": _base64url(sha256(token).digest())}


def _reads(owner: Any, name: str, edit_: Callable[..., Any]) -> Override:
    """Let a method get another first argument; `edit_` gets all that it is called with."""
    return around(owner, name)(lambda sound, self, one, *rest: sound(self, edit_(one, *rest), *rest))


def _bound_to(edit_: Callable[[str, str], tuple[str, str]]) -> Override:
    """Judge a token as if it were bound to other thumbprints; to none: as a bearer's."""

    def other(identity: Any, *_: Any) -> Any:
        found = None if identity.binding is None else edit_(*identity.binding)
        return identity._replace(binding=found if found and any(found) else None)

    return _reads(Bindings, "judge", other)


def _rule(name: str, edit_: Callable[[Any], Any]) -> Override:
    """Change what is compiled of the table `dpop`."""
    return after(ProofRules, "__init__")(lambda self, *_: setattr(self, name, edit_(getattr(self, name))))


@around(ClaimRules, "_binding")
def _skipped(sound: Any, self: Any, cnf: object) -> Any:
    try:
        return sound(self, cnf)
    except Refusal:
        return None


@rescue(ProofRules, "judge", Refusal)
def _nonce_first(_refusal: Any, self: Any, text: str, *_judged: Any) -> None:
    if self._window is not None and b"nonce" not in decode_base64url(text.split(".")[1].encode()):
        raise Refusal(Reason.NONCE_REQUIRED, "no nonce")


@around(ProofRules, "judge")
def _once(sound: Any, self: Any, text: str, *rest: Any) -> Any:
    if text in _MEMORY:
        raise Refusal(Reason.PROOF_INVALID, "seen before")
    _MEMORY[text] = found = sound(self, text, *rest)
    return found


@around(Bindings, "judge")
def _once_proven(sound: Any, self: Any, identity: Any, *rest: Any) -> Any:
    if identity.credential not in _MEMORY:
        _MEMORY[identity.credential] = sound(self, identity, *rest)
    return _MEMORY[identity.credential]


@around(Gate, "replace")
def _kept(sound: Any, self: Any, policy: Any) -> None:
    before = self._state.bindings
    sound(self, policy)
    self._state.bindings = before


def _hex(cnf: Any) -> Any:
    return {
        name: _base64url(bytes.fromhex(text)) if re.fullmatch("[0-9a-f]{64}", str(text)) else text
        for name, text in cnf.items()
    }


def _public(header: dict[str, Any]) -> dict[str, Any]:
    jwk = header.get("jwk")
    kept = {name: jwk[name] for name in jwk if name not in ("d", "p", "q")} if isinstance(jwk, dict) else jwk
    return {**header, "jwk": kept}


_uri, _claims = partial(_reads, ProofRules, "_uri"), partial(_reads, ProofRules, "_check")
_BEARER, _KNOWN = re.compile("(?i)^bearer "), ("jkt", "x5t#S256")
_EXACT = re.compile(r"https://[a-z.]+(:(?!443/)\d+)?/")
_CERTIFICATE = "ssl_c_der,sha2(256),ub64enc"
_BALANCER = 'acl iam_balancer    fc_src "${IAM_CERTIFICATE_FROM[*]}"'
for _name, _kills, _title, _override in (
    ("never-required", "BOUND-POLICY-001", "takes plain tokens where tokens must be bound",
     after(Bindings, "__init__")(lambda self, *_: setattr(self, "_required", frozenset()))),
    ("reload-kept", "BOUND-POLICY-002", "judges proofs by the former policy", _kept),
    ("no-certificate", "BOUND-CERT-001", "looks at no certificate", _bound_to(lambda jkt, _: (jkt, ""))),
    ("hex", "BOUND-CERT-002 BOUND-FORM-001", "guesses that 64 hex digits are a thumbprint",
     _reads(ClaimRules, "_binding", _hex)),
    ("first-of-two", "BOUND-BOTH-001", "asks for the key's proof alone if there are two",
     _bound_to(lambda jkt, x5t: (jkt, "") if jkt else ("", x5t))),
    ("odd-skipped", "BOUND-FORM-001", "takes a token with an odd `cnf` for a plain one", _skipped),
    ("other-members", "BOUND-FORM-002", "passes over members of `cnf` that it does not know",
     _reads(ClaimRules, "_binding", lambda cnf: {name: cnf[name] for name in _KNOWN if name in cnf} or cnf)),
    ("once-proven", "BOUND-MEMORY-001", "remembers that a token was proven", _once_proven),
    ("names-caller", "BOUND-SAID-001", "names a caller whose key is not proven",
     edit.refused(lambda found: {"principal": "ann"} if found.reason in _BINDING else {})),
    ("bearer", "DPOP-SCHEME-001", "takes a proof beside Bearer",
     around(proof, "by_dpop")(lambda sound, text: sound(_BEARER.sub("DPoP ", text)))),
    ("two-proofs", "DPOP-COUNT-001", "takes the last of two proofs", around(Bindings, "judge")(
        lambda sound, self, who, check, *rest: sound(self, who, replace(check, proof_count=1), *rest))),
    ("any-size", "DPOP-SIZE-001", "takes proofs of any size",
     Override(lambda: messages.LIMITS.update(proof=1 << 20))),
    ("any-typ", "DPOP-TYPE-001", "takes any typ", _reads(
        ProofRules, "_key_of", lambda head: {**head, "typ": "dpop+jwt"})),
    ("any-alg", "DPOP-ALG-001", "takes algorithms that are not listed",
     _rule("_algorithms", lambda _: frozenset(ALGORITHMS))),
    ("private-jwk", "DPOP-KEY-001", "drops private members of a key", _reads(ProofRules, "_key_of", _public)),
    ("long-keys", "DPOP-KEY-002", "takes longer RSA keys", setting(proof, "_MODULUS", range(342, 2000))),
    ("unsigned", "DPOP-SIGN-001", "checks no signature",
     around(proof, "_verifier")(lambda sound, *key: sound(*key) and (lambda *_: True))),
    ("any-key", "DPOP-BIND-001", "compares no thumbprint", around(ProofRules, "judge")(
        lambda sound, self, text, jkt, *rest: sound(self, text, _Any(jkt), *rest))),
    ("no-ath", "DPOP-CLAIM-001", "needs no ath",
     _claims(lambda said, token, *_: {**_ath(token), **said})),
    ("any-case", "DPOP-METHOD-001", "compares htm without case",
     _claims(lambda said, *_: {**said, "htm": str(said.get("htm")).upper()})),
    ("any-ath", "DPOP-ATH-001", "needs no ath of this token",
     _claims(lambda said, token, *_: {**said, **_ath(token)})),
    ("older", "DPOP-TIME-001", "takes proofs two seconds too old", _rule("_max_age", lambda age: age + 2)),
    ("ahead", "DPOP-TIME-001", "takes proofs of the next hour", _rule("_leeway", lambda ahead: ahead + 4000)),
    ("any-path", "DPOP-URI-001", "compares no path",
     _uri(lambda htu, asked: "/".join(str(htu).split("/")[:3]) + asked.path)),
    ("any-user", "DPOP-URI-001", "passes over user information",
     _uri(lambda htu, _: re.sub("//[^/]*@", "//", str(htu)))),
    ("exact-uri", "DPOP-URI-002", "compares URIs to the letter",
     _uri(lambda htu, asked: _EXACT.match(str(htu)) and asked.path in htu and htu)),
    ("any-host", "DPOP-ORIGIN-001", "does not compare Host with the origin",
     around(ProofRules, "_uri")(lambda sound, self, htu, asked: sound(
         self, htu, replace(asked, host=str(htu).partition("//")[2].partition("/")[0])))),
    ("nonce-first", "DPOP-COST-001", "gives a nonce before it looks at the key", _nonce_first),
    ("key-last", "DPOP-COST-001", "compares the thumbprint last", around(ProofRules, "judge")(
        lambda sound, self, text, jkt, *rest: sound(self, text, _Any(jkt), *rest)
        and sound(self, text, jkt, *rest))),
    ("no-nonce", "DPOP-NONCE-001", "takes proofs without nonce", around(ProofRules, "_judge_nonce")(
        lambda sound, self, nonce, now: sound(self, nonce, now) if nonce else "")),
    ("any-nonce", "DPOP-NONCE-001", "takes any nonce", around(ProofRules, "_judge_nonce")(
        lambda sound, self, nonce, now: "" if nonce else sound(self, nonce, now))),
    ("own-nonces", "DPOP-NONCE-001 DPOP-NONCE-002", "has nonces of each process",
     around(ProofRules, "__init__")(lambda sound, self, dpop, _: sound(self, dpop, secrets.token_bytes(32)))),
    ("one-nonce", "DPOP-NONCE-002", "has one nonce for all times",
     around(ProofRules, "_nonce")(lambda sound, self, _window: sound(self, 0))),
    ("name-of-jti", "DPOP-PROOF-001", "names proofs by key and jti alone",
     around(proof, "_name")(lambda sound, *texts: sound(*texts[:2]))),
    ("name-joined", "DPOP-PROOF-001", "names proofs without the lengths of their parts",
     around(proof, "_name")(lambda sound, *texts: sound("".join(texts)))),
    ("counts-questions", "DPOP-REPLAY-002", "counts a proof in the agent", _once),
    ("renews-any-key", "BOUND-STREAM-001", "prolongs by a token of any key",
     both(*(around(owner, "whose")(lambda sound, ticket: sound(ticket)[:5]) for owner in (judge, renewal)))),
    ("revokes-no-key", "BOUND-REVOKE-001", "finds no credential by its key", around(Revocations, "match")(
        lambda sound, self, who, name_of: sound(self, who._replace(binding=None), name_of))),
    # the gate's configuration
    ("resumed-without", "BOUND-TLS-001", "takes resumed sessions for such without a certificate",
     edit.replaced(_CERTIFICATE, f"{_CERTIFICATE} if {{ ssl_fc_has_crt }}")),
    ("header-from-all", "BOUND-HEADER-001", "believes Client-Cert from everywhere",
     edit.replaced(_BALANCER, "acl iam_balancer    always_true")),
    ("header-twice", "BOUND-HEADER-001", "takes the last of two Client-Cert",
     edit.replaced("(client-cert) eq 1", "(client-cert) ge 1")),
    ("twice", "DPOP-REPLAY-001", "lets a proof pass twice", edit.replaced("-m int gt 1", "-m int gt 2")),
    ("forgets", "DPOP-REPLAY-001", "forgets proofs at a reload",
     edit.replaced("store gpc0 peers iam-peers", "store gpc0")),
    ("forgets-soon", "DPOP-REPLAY-001", "remembers a proof for its age alone", around(render, "_bound")(
        lambda sound, config: (found := sound(config)) | (
            {"IAM_REPLAY": f"{1000 * config.dpop.max_age:.0f}ms"} if "IAM_REPLAY" in found else {}))),
    ("counts-too-late", "DPOP-REPLAY-001", "counts in a worker that has handed its table over",
     edit.without("iam_note_moved")),
    ("counts-refused", "DPOP-REPLAY-002", "counts proofs that it refuses", edit.replaced(
        "track-sc1 var(txn.iam.proof) table iam-proof if iam_pass iam_proof",
        "track-sc1 req.fhdr(dpop),sha2(256),ub64enc table iam-proof")),
    ("open-when-full", "DPOP-REPLAY-002", "lets pass what it cannot count", edit.without("!iam_tracked")),
    ("both-errors", "DPOP-CHALLENGE-001", "says errors of proofs in the scheme Bearer",
     edit.without("replace-header WWW-Authenticate")),
    ("unexposed", "DPOP-CHALLENGE-001", "hides nonces and challenges from browsers",
     edit.without("if iam_own iam_challenged or iam_nonce")),
    ("stored-nonce", "DPOP-CHALLENGE-001", "lets caches keep a nonce",
     edit.without("Cache-Control no-store if iam_nonce")),
    ("leaves-proof", "DPOP-STRIP-001", "passes the proof on", edit.without("del-header DPoP")),
    ("keeps-proof", "DPOP-STRIP-001", "keeps the proof from a server that counts", edit.replaced(
        "del-header Authorization\n", "del-header ^(authorization|dpop)$ -m reg\n")),
    ("early", "DPOP-EARLY-001", "answers early data", edit.without("return status 425")),
):  # fmt: skip
    mutant(f"bound.{_name}", _kills, _title)(_override)
