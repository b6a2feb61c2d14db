"""Mutants of bound tokens: BOUND and DPOP, in the agent and in the gate's configuration."""

from __future__ import annotations

import json
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from typing import Any

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
from iamroles_conformance.selftest.mutants.override import after, around, setting
from iamroles_conformance.selftest.registry import Override, both, mutant

_BINDING = ("token_bound", "binding_mismatch", "proof_invalid")
_MEMORY: dict[str, Any] = {}


def _base64url(octets: bytes) -> str:
    return urlsafe_b64encode(octets).rstrip(b"=").decode()


def _json(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return found


def _bound_to(edit_: Callable[[str, str], tuple[str, str]]) -> Override:
    """Judge a token as if it were bound to other thumbprints; to none: as a bearer's."""

    def other(identity: Any) -> Any:
        found = None if identity.binding is None else edit_(*identity.binding)
        return identity._replace(binding=found if found and any(found) else None)

    return around(Bindings, "judge")(lambda sound, self, who, *rest: sound(self, other(who), *rest))


def _header(edit_: Callable[[dict[str, Any]], dict[str, Any]]) -> Override:
    """Read another header of each proof."""
    return around(ProofRules, "_key_of")(lambda sound, self, header: sound(self, edit_(header)))


def _claims(edit_: Callable[[dict[str, Any], bytes], dict[str, Any]]) -> Override:
    """Judge other claims of each proof; `edit_` gets them and the token."""
    return around(ProofRules, "_check")(
        lambda sound, self, claims, token, *rest: sound(self, edit_(claims, token), token, *rest)
    )


def _rules(**changes: Callable[[Any], Any]) -> Override:
    """Change what is compiled of the table `dpop`."""
    return after(ProofRules, "__init__")(
        lambda self, *_: self.__dict__.update(
            {name: new(getattr(self, name)) for name, new in changes.items()}
        )
    )


@around(ClaimRules, "_binding")
def _skipped(sound: Any, self: Any, cnf: object) -> Any:
    try:
        return sound(self, cnf)
    except Refusal:
        return None


@around(ProofRules, "judge")
def _any_key(sound: Any, self: Any, text: str, jkt: str, *rest: Any) -> Any:
    with suppress(ValueError, KeyError, TypeError):
        jwk = _json(text.partition(".")[0])["jwk"]
        members = {name: jwk[name] for name in proof._MEMBERS[jwk["kty"]]}
        jkt = _base64url(sha256(json.dumps(members, separators=(",", ":")).encode()).digest())
    return sound(self, text, jkt, *rest)


@around(ProofRules, "judge")
def _nonce_first(sound: Any, self: Any, text: str, jkt: str, token: bytes, request: Any, now: float) -> Any:
    if self._window is not None:
        with suppress(ValueError, IndexError):
            self._judge_nonce(_json(text.split(".")[1]).get("nonce"), now)
    return sound(self, text, jkt, token, request, now)


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


def _cnf(edit_: Callable[[dict[str, Any]], dict[str, Any]]) -> Override:
    """Read another `cnf`."""
    return around(ClaimRules, "_binding")(
        lambda sound, self, cnf: sound(self, edit_(cnf) if isinstance(cnf, dict) else cnf)
    )


def _hex(cnf: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _base64url(bytes.fromhex(text)) if re.fullmatch("[0-9a-f]{64}", str(text)) else text
        for name, text in cnf.items()
    }


def _known(cnf: dict[str, Any]) -> dict[str, Any]:
    return {name: cnf[name] for name in ("jkt", "x5t#S256") if name in cnf} or cnf


def _public(header: dict[str, Any]) -> dict[str, Any]:
    jwk = header.get("jwk")
    kept = {name: jwk[name] for name in jwk if name not in ("d", "p", "q")} if isinstance(jwk, dict) else jwk
    return {**header, "jwk": kept}


def _uri(edit_: Callable[[str, Any], Any]) -> Override:
    """Compare `htu`, or the request, as edited: `edit_` returns both."""
    return around(ProofRules, "_uri")(
        lambda sound, self, htu, asked: sound(
            self, *(edit_(htu, asked) if isinstance(htu, str) else (htu, asked))
        )
    )


_BEARER = re.compile("(?i)^bearer ")
_EXACT = re.compile(r"https://[a-z.]+(:(?!443/)\d+)?/")
_CERTIFICATE = "ssl_c_der,sha2(256),ub64enc"
_BALANCER = 'acl iam_balancer    src "${IAM_CERTIFICATE_FROM[*]}"'
for _name, _kills, _title, _override in (
    ("never-required", "BOUND-POLICY-001", "takes plain tokens where tokens must be bound",
     after(Bindings, "__init__")(lambda self, *_: setattr(self, "_required", frozenset()))),
    ("reload-kept", "BOUND-POLICY-002", "judges proofs by the former policy", _kept),
    ("no-certificate", "BOUND-CERT-001", "looks at no certificate", _bound_to(lambda jkt, _: (jkt, ""))),
    ("hex", "BOUND-CERT-002 BOUND-FORM-001", "guesses that 64 hex digits are a thumbprint", _cnf(_hex)),
    ("first-of-two", "BOUND-BOTH-001", "asks for the key's proof alone if there are two",
     _bound_to(lambda jkt, x5t: (jkt, "") if jkt else ("", x5t))),
    ("odd-skipped", "BOUND-FORM-001", "takes a token with an odd `cnf` for a plain one", _skipped),
    ("other-members", "BOUND-FORM-002", "passes over members of `cnf` that it does not know", _cnf(_known)),
    ("once-proven", "BOUND-MEMORY-001", "remembers that a token was proven", _once_proven),
    ("names-caller", "BOUND-SAID-001", "names a caller whose key is not proven",
     edit.refused(lambda found: {"principal": "ann"} if found.reason in _BINDING else {})),
    ("bearer", "DPOP-SCHEME-001", "takes a proof beside Bearer",
     around(proof, "by_dpop")(lambda sound, text: sound(_BEARER.sub("DPoP ", text)))),
    ("two-proofs", "DPOP-COUNT-001", "takes the last of two proofs", around(Bindings, "judge")(
        lambda sound, self, who, check, *rest: sound(self, who, replace(check, proof_count=1), *rest))),
    ("any-size", "DPOP-SIZE-001", "takes proofs of any size",
     Override(lambda: messages.LIMITS.update(proof=1 << 20))),
    ("any-typ", "DPOP-TYPE-001", "takes any typ", _header(lambda head: {**head, "typ": "dpop+jwt"})),
    ("any-alg", "DPOP-ALG-001", "takes algorithms that are not listed",
     _rules(_algorithms=lambda _: frozenset(ALGORITHMS))),
    ("private-jwk", "DPOP-KEY-001", "drops private members of a key", _header(_public)),
    ("long-keys", "DPOP-KEY-002", "takes longer RSA keys", setting(proof, "_MODULUS", range(342, 2000))),
    ("unsigned", "DPOP-SIGN-001", "checks no signature",
     around(proof, "_verifier")(lambda sound, *key: sound(*key) and (lambda *_: True))),
    ("any-key", "DPOP-BIND-001", "compares no thumbprint", _any_key),
    ("no-ath", "DPOP-CLAIM-001", "needs no ath",
     _claims(lambda said, token: {"ath": _base64url(sha256(token).digest()), **said})),
    ("any-case", "DPOP-METHOD-001", "compares htm without case",
     _claims(lambda said, _: {**said, "htm": str(said.get("htm")).upper()})),
    ("any-ath", "DPOP-ATH-001", "needs no ath of this token",
     _claims(lambda said, token: {**said, "ath": _base64url(sha256(token).digest())})),
    ("older", "DPOP-TIME-001", "takes proofs that are two seconds old", _rules(_max_age=lambda age: age + 2)),
    ("ahead", "DPOP-TIME-001", "takes proofs from an hour ahead", _rules(_leeway=lambda ahead: ahead + 4000)),
    ("any-path", "DPOP-URI-001", "compares no path",
     _uri(lambda htu, asked: ("/".join(htu.split("/")[:3]) + asked.path, asked))),
    ("any-user", "DPOP-URI-001", "passes over user information",
     _uri(lambda htu, asked: (re.sub("//[^/]*@", "//", htu), asked))),
    ("exact-uri", "DPOP-URI-002", "compares URIs to the letter",
     _uri(lambda htu, asked: (htu if _EXACT.match(htu) and asked.path in htu else None, asked))),
    ("any-host", "DPOP-ORIGIN-001", "does not compare Host with the origin",
     _uri(lambda htu, asked: (htu, replace(asked, host=htu.partition("//")[2].partition("/")[0])))),
    ("nonce-first", "DPOP-COST-001", "gives a nonce before it looks at the key", _nonce_first),
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
    ("counts-too-late", "DPOP-REPLAY-001", "counts in a worker that has handed its table over",
     edit.without("iam_note_moved")),
    ("open-when-full", "DPOP-REPLAY-002", "lets pass what it cannot count", edit.without("!iam_tracked")),
    ("both-errors", "DPOP-CHALLENGE-001", "says errors of proofs in the scheme Bearer",
     edit.without("replace-header WWW-Authenticate")),
    ("stored-nonce", "DPOP-CHALLENGE-001", "lets caches keep a nonce",
     edit.without("Cache-Control no-store if iam_nonce")),
    ("leaves-proof", "DPOP-STRIP-001", "passes the proof on", edit.without("del-header DPoP")),
    ("early", "DPOP-EARLY-001", "answers early data", edit.without("return status 425")),
):  # fmt: skip
    mutant(f"bound.{_name}", _kills, _title)(_override)
