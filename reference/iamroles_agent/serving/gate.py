"""From a question on the wire to a verdict: credential, policy, audit, memory.

How long a verdict may be remembered
------------------------------------
The same client asks the same question over and over, so a verdict is kept under the bytes of `iam-check`.
It may be used again only while a new decision would give the same answer. Five things can change that:

- time: an allow dies at its `expires`, a refusal by policy at the end of the identity. Both are epoch
  seconds and compared with the clock at every use (`now >= expires` is dead).
- keys: a key that left its issuer's set takes the verdicts with it. `Authenticator.generation` grows then.
- policy: a reload puts a new `_State` in place, memory included.
- the proxy: the bytes are the whole question, the client's address included.
- the signed identity that it holds, if any: half its life (`identity_header.signer`).

If one of these changes while a verdict is worked out, the gate works it out again by what is in force now:
once a reload is confirmed, it answers nothing by what the reload replaced, however long a question has
waited.

An answer to a question with a DPoP proof is never remembered: the next one needs another proof.
Refusals of the credential itself are never remembered. They would let a client that sends garbage push good
verdicts out, and a key unknown now may be fetched a moment later. The memory has two halves: new verdicts go
to the young one; when it is full it becomes the old one and the former old one is dropped; a hit in the old
half moves back. That costs nothing on a hit and keeps what is in use, within a bound in bytes. A long
question takes no more of it than a short one: beyond 2 kB the key is the hash of the bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from hashlib import sha256
from ipaddress import IPv4Address

from iamroles_agent.audit.log import Audit
from iamroles_agent.audit.record import PreparedRecord, prepare
from iamroles_agent.audit.redaction import credential_hash
from iamroles_agent.base.identity import NO_HEADERS, Decision, Identity, Request
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.base.release import release
from iamroles_agent.identity_header import Signer
from iamroles_agent.live.revocations import NONE, Revocations, revoked
from iamroles_agent.live.ticket import ticket
from iamroles_agent.policy.compiled import Policy
from iamroles_agent.policy.paths import canonical
from iamroles_agent.policy.resources import Found
from iamroles_agent.serving.metrics import Metrics
from iamroles_agent.spop.actions import encode_verdict
from iamroles_agent.spop.messages import LIMITS, Check, Context
from iamroles_agent.tokens import Authenticator
from iamroles_agent.tokens.admission import client_network
from iamroles_agent.tokens.authenticator import Once
from iamroles_agent.tokens.proof import Bindings

_HALF = 16 << 20
"""Bytes of keys and actions that one half of the memory holds, at most."""
_ENTRY_OVERHEAD = 600
"""Bytes, about, of an entry beside its key and actions: objects, audit record, table slot."""
_LONGEST_KEY = 2 << 10
"""A longer question is remembered under its hash, so that a client cannot fill the memory with long keys."""
_once: ContextVar[Once] = ContextVar("once")
"""The proof that the present question has got, in case it is judged again."""


@dataclass(slots=True)
class _Verdict:
    actions: bytes
    record: PreparedRecord
    expires: int
    reason: Reason | None
    shadowed: bool


@dataclass(slots=True)
class _State:
    """Policy, keys and revocations in force together, and what was decided by them; a change replaces it."""

    policy: Policy
    generation: int
    """`Authenticator.generation` when this state was made."""
    revocations: Revocations = NONE
    young: dict[bytes, _Verdict] = field(default_factory=dict)
    old: dict[bytes, _Verdict] = field(default_factory=dict)
    young_bytes: int = 0
    bindings: Bindings = field(init=False)

    def __post_init__(self) -> None:
        self.bindings = Bindings(self.policy.config, self.policy.nonce_key)


@dataclass(frozen=True, slots=True)
class _Judged:
    """A decision, what was in force, and its record."""

    state: _State
    decision: Decision
    last_second: int | None
    """Until when it would be decided the same; None: unknown."""
    record: PreparedRecord


class Gate:
    """Answers `iam-check` questions for the server.

    Args:
        policy: compiled.
        authenticator: started.
        audit: where each answer is recorded.
        metrics: counters.
        clock: epoch seconds.
    """

    def __init__(
        self,
        policy: Policy,
        authenticator: Authenticator,
        audit: Audit,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.authenticator = authenticator
        self._audit = audit
        self._durable = audit.durable
        self._metrics = metrics
        self._clock = clock
        metrics.cache_sizes["verdict"] = lambda: self.remembered
        self.signer: Signer | None = None
        """Signs the identity of allowed requests; None: it is not passed on."""
        self.name = ""
        """This agent, in the tickets of long streams."""
        self.on_change: list[Callable[[], None]] = []
        """Called on the event loop after the policy changed."""
        self.on_revocation: list[Callable[[], None]] = []
        """Called on the event loop after revocations changed."""
        self._state = _State(policy, authenticator.generation)

    @property
    def revocations(self) -> Revocations:
        return self._state.revocations

    @property
    def policy(self) -> Policy:
        return self._state.policy

    @property
    def remembered(self) -> int:
        return len(self._state.young) + len(self._state.old)

    def replace(self, policy: Policy) -> None:
        """Put a new policy in force at once; nothing remembered survives (RELOAD-ALL-001)."""
        self._put(policy, self._state.revocations, self.on_change)

    def revoke(self, revocations: Revocations) -> None:
        """Put revocations in force at once; nothing remembered survives."""
        self._put(self._state.policy, revocations, self.on_revocation)

    def sign_with(self, signer: Signer) -> None:
        """Sign with other keys at once; no remembered answer has an identity of the former ones."""
        self.signer = signer
        self._put(self._state.policy, self._state.revocations, [])

    def _put(self, policy: Policy, revocations: Revocations, calls: list[Callable[[], None]]) -> None:
        former, self._state = self._state, _State(policy, self.authenticator.generation, revocations)
        release([former.young, former.old])
        for call in calls:
            call()

    def recall(self, key: bytes, context: Context) -> bytes | None:
        """The remembered answer to this very question, recorded in the audit; None: `judge` it."""
        if self._durable:
            return None  # the answer must wait for the disk: `judge` looks it up
        began = time.perf_counter()
        state = self._state
        verdict = state.young.get(key)
        # The usual case is written out here: each call of a function would cost some hundredths of the whole.
        if (
            verdict is None
            or state.generation != self.authenticator.generation
            or self._clock() >= verdict.expires
        ):
            verdict = self._remembered(key)
            if verdict is None:
                return None
        if not self._audit.record(verdict.record, context.request_id, context.src_port, context.stream):
            return self._unrecorded()
        metrics = self._metrics
        metrics.verdict_hits += 1
        metrics.shadowed += verdict.shadowed
        metrics.decided(verdict.reason, time.perf_counter() - began)
        return verdict.actions

    async def judge(self, check: Check, context: Context, key: bytes | None) -> bytes:
        """Work out the answer, record it, remember it if that is sound. The server cancels it with its peer.

        Returns:
            Encoded SPOP actions.
        """
        began = time.perf_counter()
        if self._durable and key is not None and (verdict := self._remembered(key)) is not None:
            state = self._state
            if not await self._record(verdict.record, context):
                return self._unrecorded()
            if state is self._current() and self._clock() < verdict.expires:  # still so when it is on disk
                self._metrics.verdict_hits += 1
                self._metrics.shadowed += verdict.shadowed
                self._metrics.decided(verdict.reason, time.perf_counter() - began)
                return verdict.actions
        _once.set(Once())
        judged = await self._judged(check)
        recorded: Decision | None = None
        while judged.decision != recorded:
            if not await self._record(judged.record, context):
                return self._unrecorded()
            recorded = judged.decision
            over = recorded.allow and recorded.expires is not None and recorded.expires <= self._clock()
            if over or judged.state is not self._current():  # since the record was written to the disk
                judged = await self._judged(check)
        state, decision, last_second = judged.state, judged.decision, judged.last_second
        actions = encode_verdict(decision)
        if self.signer is not None and decision.allow:
            signed = self.signer.sign(decision, self._clock())
            actions = encode_verdict(decision, signed.token)
            last_second = None if last_second is None else min(last_second, signed.fresh_until)
        # What `recall` does not know may be used once only (a replay cache): its verdict is not kept either.
        if (
            key is not None
            and last_second is not None
            and self.authenticator.recall(check.authorization or "") is not None
        ):
            shadowed = bool(decision.shadow)
            verdict = _Verdict(actions, judged.record, last_second, decision.reason, shadowed)
            self._remember(state, key, verdict)
        self._metrics.verdict_misses += 1
        self._metrics.shadowed += bool(decision.shadow)
        if not decision.answer:
            self._metrics.decided(decision.reason, time.perf_counter() - began)
        return actions

    def unhealthy(self) -> str:
        """Why every answer would be `internal_error` now, "" if decisions can be made."""
        if self._audit.refusing:
            return "the audit log cannot be written"
        return ""

    def failed(self, context: Context, detail: str) -> bytes:
        """Refuse with `internal_error`, because there can be no verdict; the audit says why."""
        decision = Decision(allow=False, reason=Reason.INTERNAL_ERROR, detail=detail)
        record = self._prepared(_UNREADABLE, decision, self._current())
        self._audit.record(record, context.request_id, context.src_port, context.stream)
        self._metrics.decided(Reason.INTERNAL_ERROR, 0.0)
        return encode_verdict(decision)

    def _prepared(self, check: Check, decision: Decision, state: _State) -> PreparedRecord:
        return prepare(
            decision,
            src="" if check.src is None else str(check.src),
            method=check.method,
            host=check.host or "",
            path=check.path,
            requested_role=check.role,
            policy_version=state.policy.version,
            generation=state.generation,
        )

    async def _record(self, record: PreparedRecord, context: Context) -> bool:
        """Record, and wait for the disk if the audit is durable; false: the verdict must not be answered."""
        if not self._audit.record(record, context.request_id, context.src_port, context.stream):
            return False
        return not self._durable or await self._audit.confirmed()

    def _current(self) -> _State:
        """Look at what is in force; drop its memory if a key was lost."""
        if self._state.generation != self.authenticator.generation:
            self.replace(self._state.policy)
        return self._state

    async def _judged(self, check: Check) -> _Judged:
        """Decide by what is in force, again if it changes meanwhile."""
        state, asked = None, _asked(check, check.path)
        while state is not (current := self._current()):
            state = current
            found = state.policy.resources.find(asked)
            decision, last_second = await self._decide(state, check, found)
            decision = state.policy.named(found, asked, decision)
        return _Judged(state, decision, last_second, self._prepared(check, decision, state))

    async def _decide(self, state: _State, check: Check, found: Found) -> tuple[Decision, int | None]:
        """The decision, and until when it would be decided the same; None: unknown."""
        try:
            request = _request(check)
            if found.target is not None and check.mcp is NO_HEADERS:
                raise Refusal(Reason.INTERNAL_ERROR, "HAProxy asks nothing of MCP: render and reload it")
            if (answer := found.answered(request)) is not None:
                return answer, None
            identity = await self._identify(check)
        except Refusal as refusal:
            credential = credential_hash(_token(check)) if check.authorization else ""
            return _refused(refusal, credential), None
        if (revocation := state.revocations.match(identity, state.policy.name_of)) is not None:
            return revoked(identity, revocation), None
        now = self._clock()
        try:
            found.admit(identity)
            proven = state.bindings.judge(identity, check, request, now)
        except Refusal as refusal:
            decision = _refused(refusal, identity.credential)
            if refusal.reason is Reason.NONCE_REQUIRED and state.bindings.proofs is not None:
                decision = replace(decision, nonce=state.bindings.proofs.fresh(now))
            return decision, None
        decision = state.policy.decide(identity, request, now, found)
        if decision.allow:
            decision.ticket = ticket(self.name, identity, request, decision)
            decision.proof, decision.nonce = proven.use, proven.nonce
        if proven.keys:
            decision = replace(decision, keys=proven.keys)
        if check.proof is not None:
            return decision, None
        ends = identity.believed_until
        return decision, ends if decision.expires is None else min(ends, decision.expires)

    async def _identify(self, check: Check) -> Identity:
        """Identify the client.

        Raises:
            Refusal: any reason of the credential.
        """
        if check.authorization_count > 1:
            raise Refusal(Reason.MULTIPLE_CREDENTIALS, f"{check.authorization_count} Authorization headers")
        if not check.authorization:
            raise Refusal(Reason.NO_CREDENTIALS)
        identity = self.authenticator.recall(check.authorization)
        if identity is not None:
            self._metrics.identity_hits += 1
            return identity
        self._metrics.identity_misses += 1
        once = _once.get(None) or Once()
        return await self.authenticator.prove(check.authorization, client_network(check.src), once)

    def _remembered(self, key: bytes) -> _Verdict | None:
        state = self._state
        if state.generation != self.authenticator.generation:
            state = self._current()
        if len(key) > _LONGEST_KEY:
            key = sha256(key).digest()
        verdict = state.young.get(key)
        if verdict is None:
            verdict = state.old.pop(key, None)
            if verdict is None:
                return None
            self._keep(state, key, verdict)
        if self._clock() >= verdict.expires:
            state.young.pop(key, None)
            return None
        return verdict

    def _remember(self, state: _State, key: bytes, verdict: _Verdict) -> None:
        if state is self._state:
            self._keep(state, key if len(key) <= _LONGEST_KEY else sha256(key).digest(), verdict)

    def _keep(self, state: _State, key: bytes, verdict: _Verdict) -> None:
        size = len(key) + len(verdict.actions) + 2 * len(verdict.record.body) + _ENTRY_OVERHEAD
        if state.young_bytes + size > _HALF:
            state.old, state.young, state.young_bytes = state.young, {}, 0
        state.young[key] = verdict
        state.young_bytes += size

    def _unrecorded(self) -> bytes:
        self._metrics.decided(Reason.INTERNAL_ERROR, 0.0)
        return _UNRECORDED


def _refused(refusal: Refusal, credential: str) -> Decision:
    """Refuse without a caller's name: the credential, or its key, is not proven."""
    return Decision(allow=False, reason=refusal.reason, detail=refusal.detail, credential=credential)


def _request(check: Check) -> Request:
    """The request to judge.

    Raises:
        Refusal: `internal_error` if HAProxy left out what a decision needs, `text_too_long`,
            `path_ambiguous`.
    """
    if check.missing or check.src is None:
        what = ", ".join(check.missing) or "src"
        raise Refusal(Reason.INTERNAL_ERROR, f"iam-check came without a usable {what}")
    if check.too_long:
        what = ", ".join(f"{name} above {LIMITS[name]} bytes" for name in check.too_long)
        raise Refusal(Reason.TEXT_TOO_LONG, what)
    return _asked(check, canonical(check.path))


def _asked(check: Check, path: str) -> Request:
    source = check.src or IPv4Address(0)
    return Request(check.method, check.host or "", path, source, check.role, check.mcp)


def _token(check: Check) -> str:
    """The credential without its scheme, so that its hash is that of an accepted token."""
    return (check.authorization or "").partition(" ")[2].strip() or check.authorization or ""


_UNREADABLE = Check(None, 0, role=None, method="", host=None, path="", src=None)
"""Stands for a question that is not recorded, in the record of a failure."""
_UNRECORDED = encode_verdict(
    Decision(allow=False, reason=Reason.INTERNAL_ERROR, detail="the audit log cannot be written")
)
