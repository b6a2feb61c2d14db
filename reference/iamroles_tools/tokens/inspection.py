"""Explain a credential step by step, for `iamroles token inspect`.

The steps are the agent's own, in its order. If a step fails, later steps are still tried if possible, so that
a person sees all faults, while the verdict is the reason that the agent would give. A signature, a security
token or a key is never shown.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from iamroles_agent.audit.redaction import credential_hash
from iamroles_agent.base.config import Config
from iamroles_agent.base.encoding import decode_base64url, decode_object
from iamroles_agent.base.identity import Identity
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.tokens.authenticator import check_header
from iamroles_agent.tokens.claims import ClaimRules
from iamroles_agent.tokens.jws import Jws, parse
from iamroles_agent.tokens.keys import Key
from iamroles_agent.tokens.sts import MAX_CREDENTIAL, PREFIX, read_credential
from iamroles_tools.policy.explain import needed_proofs

Outcome = Literal["ok", "fails", "unchecked"]
ObtainKey = Callable[[str, str | None, str], Awaitable[Key]]
"""`(issuer name, kid, alg) -> key`; raises `Refusal`."""

_IGNORED = frozenset(("jwk", "jku", "x5u", "x5c"))


@dataclass(frozen=True, slots=True)
class Step:
    """A check and its outcome."""

    check: str
    outcome: Outcome
    detail: str = ""
    reason: Reason | None = None


@dataclass(slots=True)
class Inspection:
    """The contents of a credential, and the outcome of each check."""

    kind: Literal["jwt", "sts"]
    credential: str
    header: dict[str, Any] = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)
    signature: str = "unchecked"
    """"verified", "does not verify" or "unchecked", and the length; never the bytes."""
    steps: list[Step] = field(default_factory=list)
    identity: Identity | None = None

    @property
    def reason(self) -> Reason | None:
        """The reason that the agent would give: the first failure; None if no check failed."""
        return next((step.reason for step in self.steps if step.outcome == "fails"), None)

    def attempt(self, check: str, call: Callable[[], str]) -> bool:
        """Run a check that returns its detail or raises `Refusal`; return whether it passed."""
        try:
            self.steps.append(Step(check, "ok", call()))
        except Refusal as refusal:
            self.steps.append(Step(check, "fails", refusal.detail, refusal.reason))
            return False
        return True

    def skip(self, detail: str, *checks: str) -> None:
        """Note checks that were impossible."""
        self.steps += [Step(check, "unchecked", detail) for check in checks]


async def inspect(token: bytes, config: Config | None, obtain: ObtainKey | None, now: float) -> Inspection:
    """Explain a credential, given without its scheme.

    Without `config` only the form is judged; without `obtain`, which gets an issuer's key, the signature is
    not.
    """
    kind: Literal["jwt", "sts"] = "sts" if token.startswith(PREFIX) else "jwt"
    found = Inspection(kind, credential_hash(token.decode("utf-8", "replace")))
    if kind == "sts":
        _inspect_sts(found, token, config, now)
    else:
        await _inspect_jwt(found, token, config, obtain, now)
    return found


async def _inspect_jwt(
    found: Inspection, token: bytes, config: Config | None, obtain: ObtainKey | None, now: float
) -> None:
    jws: Jws | None = None

    def form() -> str:
        nonlocal jws
        jws = parse(token, config.limits.max_token_bytes if config else 8192)
        return f"{len(token)} bytes"

    if not found.attempt("form", form) or jws is None:
        return
    members = decode_object(decode_base64url(token.partition(b".")[0]))
    ignored = "(ignored: a header is never followed)"
    found.header = {name: ignored if name in _IGNORED else value for name, value in members.items()}
    found.claims = jws.payload
    found.signature = f"unchecked, {len(jws.signature)} bytes"
    if config is None:
        found.skip("no policy given", "issuer", "algorithm and type", "key", "signature", "claims")
        return
    rules = _step_issuer(found, jws, config)
    if rules is None:
        found.skip("the issuer is unknown", "algorithm and type", "key", "signature", "claims")
        return
    read, header, policy = jws, jws.header, config
    fits = found.attempt("algorithm and type", lambda: f"{check_header(read, rules)}, {header.typ}")
    if not fits or obtain is None:
        found.skip("no keys" if fits else "not for this algorithm or type", "key", "signature")
    else:
        await _step_signature(found, jws, rules.name, obtain)

    def judge() -> str:
        identity = rules.identity(read.payload, header, now, found.credential)
        found.identity = identity
        proofs = "".join(f", needs {proof}" for proof in needed_proofs(policy, identity))
        ends = identity.not_after - now
        by = "" if identity.actor is None else f" by {identity.actor.sub} of {identity.actor.issuer}"
        return f"{identity.principal}{by}, {len(identity.roles)} roles, ends in {ends:.0f} s{proofs}"

    found.attempt("claims", judge)
    if found.reason is not None:
        found.identity = None


def _step_issuer(found: Inspection, jws: Jws, config: Config) -> ClaimRules | None:
    iss = jws.payload.get("iss")
    for issuer in config.issuers:
        if issuer.issuer == iss:
            found.steps.append(Step("issuer", "ok", issuer.name))
            return ClaimRules(issuer, config.limits)
    near = [
        issuer.name
        for issuer in config.issuers
        if isinstance(iss, str) and issuer.issuer.rstrip("/").lower() == iss.rstrip("/").lower()
    ]
    hint = f"; it differs from {near[0]} in case or a trailing slash only" if near else ""
    found.steps.append(
        Step("issuer", "fails", f"iss is not exactly a configured issuer{hint}", Reason.ISSUER_UNTRUSTED)
    )
    return None


async def _step_signature(found: Inspection, jws: Jws, issuer: str, obtain: ObtainKey) -> None:
    size = f"{len(jws.signature)} bytes"
    try:
        key = await obtain(issuer, jws.header.kid, jws.header.alg)
    except Refusal as refusal:
        found.steps.append(Step("key", "fails", refusal.detail, refusal.reason))
        found.skip("no key", "signature")
        return
    found.steps.append(Step("key", "ok", f"{key.kty} {key.crv}".strip()))
    if key.verifier(jws.header.alg)(jws.signature, jws.signing_input):
        found.signature = f"verified, {size}"
        found.steps.append(Step("signature", "ok", found.signature))
    else:
        found.signature = f"does not verify, {size}"
        detail = "another key signed it, or it was changed"
        found.steps.append(Step("signature", "fails", detail, Reason.SIGNATURE_INVALID))


def _inspect_sts(found: Inspection, token: bytes, config: Config | None, now: float) -> None:
    if config is None:
        size = len(token)
        good = size <= MAX_CREDENTIAL
        reason = None if good else Reason.TOKEN_TOO_LARGE
        found.steps.append(Step("form", "ok" if good else "fails", f"{size} bytes", reason))
        found.skip("no policy given", "URL", "STS's answer")
        return
    by_host = {host: endpoint for endpoint in config.sts for host in endpoint.hosts}

    def read() -> str:
        question = read_credential(token, by_host, now)
        secret = ("X-Amz-Signature", "X-Amz-Security-Token")
        found.claims = {
            name: f"(hidden, {len(value)} characters)" if name in secret else value
            for name, value in question.values
        } | {"host": question.host}
        ends = question.signed_at + 900 - now
        return f"endpoint {question.endpoint.name}, access key {question.key_id}, ends in {ends:.0f} s"

    found.attempt("URL", read)
    found.skip("only STS knows who signed it; inspect never asks", "STS's answer")
