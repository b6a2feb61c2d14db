"""A pre-signed STS GetCallerIdentity URL as a credential (STS-ALLOW to STS-REPLAY).

The caller signs a question that only STS can answer, "who am I?", and gives the signed question to the agent,
which asks it. Known vulnerabilities of this method have one cause: the caller could choose more of the
request than the signature (CVE-2020-16250, CVE-2022-2385, CVE-2025-11621). So the agent takes the URL apart
against a closed list and builds the request from the parts: the policy gives the endpoint and the headers,
the agent spells the parameter names, and only five values (credential, date, expires, security token,
signature) come from the caller, each in a checked form. The binding header is signed, and the agent sets its
value: a credential made for another edge does not verify here.

STS judges the signature and the credentials; the agent judges the date, because STS and its emulators are
lenient with `X-Amz-Expires`. Throttling and failures are not verdicts on the caller: the answer is
`sts_unavailable`, the credential is not blamed, and the agent pauses, for up to two seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine, Hashable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl, quote, urlsplit

from iamroles_agent.base.clocks import Clock
from iamroles_agent.base.config import Sts
from iamroles_agent.base.encoding import decode_base64url
from iamroles_agent.base.identity import Identity, RoleArn
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.tokens.admission import MAX_WAIT, Admission, Callers
from iamroles_agent.tokens.grounds import sts_grounds
from iamroles_agent.tokens.sts_answer import Caller, Rejected, Unavailable, read_answer
from iamroles_agent.tokens.transport import Transport, TransportError, check_url

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

PREFIX = b"iam-sts-v1."
MAX_CREDENTIAL = 4096
LIFETIME = 15 * 60
"""Seconds from `X-Amz-Date` until the credential ends, whatever `X-Amz-Expires` says (STS-DATE-001)."""
_KEPT = 2 * LIFETIME
"""Seconds for which a used signature is kept, monotonic: the host may set back its clock."""
CLOCK_SKEW = 5
"""Seconds by which a date may be ahead, because two machines' clocks differ."""
_MAX_ANSWER = 64 * 1024
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_REJECTED_FOR = 30.0
_MAX_REJECTED = 1024

_PARAMETERS = {
    name.lower(): name
    for name in (
        "Action", "Version", "X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires",
        "X-Amz-Security-Token", "X-Amz-Signature", "X-Amz-SignedHeaders",
    )
}  # fmt: skip
_REQUIRED = frozenset(_PARAMETERS) - {"x-amz-security-token"}
_CREDENTIAL = re.compile(
    r"(?P<key>[A-Z0-9]{16,128})/(?P<date>\d{8})/[a-z0-9-]{1,32}/sts/aws4_request", re.ASCII
)
_DATE = re.compile(r"\d{8}T\d{6}Z", re.ASCII)
_EXPIRES = re.compile(r"\d{1,3}", re.ASCII)
_SIGNATURE = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SECURITY_TOKEN = re.compile(r"[A-Za-z0-9+/=_-]{1,3000}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Question:
    """A credential taken apart: the parts that may travel to STS."""

    endpoint: Sts
    scheme: str
    host: str
    """The signed Host: exactly one of the policy's `hosts`."""
    key_id: str
    signed_at: int
    """Epoch seconds of `X-Amz-Date`."""
    values: tuple[tuple[str, str], ...]
    """The query, in the agent's spelling of the names."""
    signature: str

    def url(self) -> str:
        """Build the URL of the request: the policy's endpoint, the agent's encoding of the checked values."""
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in self.values)
        return f"{self.endpoint.endpoint.rstrip('/')}/?{query}"

    def headers(self) -> dict[str, str]:
        """Return all headers that travel; the caller chooses none of them."""
        return {
            "Host": self.host,
            self.endpoint.binding_header.lower(): self.endpoint.binding_value,
            "Accept": "application/json",
        }


def _rejected(detail: str) -> Refusal:
    return Refusal(Reason.STS_REJECTED, detail)


def read_credential(token: bytes, endpoints: dict[str, Sts], now: float) -> Question:
    """Take a credential apart (STS-FORM to STS-DATE).

    The token has its prefix; `endpoints` are the policy's, by each accepted host.

    Raises:
        Refusal: `token_too_large`, `token_malformed`, `issuer_untrusted` (host), `sts_rejected`,
            `token_expired`, `token_not_yet_valid`.
    """
    if len(token) > MAX_CREDENTIAL:
        raise Refusal(Reason.TOKEN_TOO_LARGE, f"{len(token)} bytes, at most {MAX_CREDENTIAL} are read")
    try:
        url = decode_base64url(token[len(PREFIX) :]).decode("ascii")
        if not url.isprintable() or any(sign in url for sign in ' \\#"<>'):
            raise ValueError("not a URL")
        parts = urlsplit(url)
    except ValueError:
        raise Refusal(Reason.TOKEN_MALFORMED, "not the unpadded base64url of an ASCII URL") from None
    # The whole authority is compared: with user info, a port or a trailing dot it is another string.
    endpoint = endpoints.get(parts.netloc)
    if endpoint is None:
        raise Refusal(Reason.ISSUER_UNTRUSTED, "the URL's host is not one of the policy's STS hosts")
    if not (parts.scheme == "https" or (parts.scheme == "http" and endpoint.insecure_http)):
        raise _rejected("the URL is not https")
    if parts.path != "/":
        raise _rejected("the URL's path is not exactly /")
    values = _read_query(parts.query)
    signed_at = _check_values(values, endpoint)
    if now < signed_at - CLOCK_SKEW:
        raise Refusal(Reason.TOKEN_NOT_YET_VALID, f"signed {signed_at - now:.0f} s ahead")
    if now >= signed_at + LIFETIME:
        raise Refusal(Reason.TOKEN_EXPIRED, f"signed {now - signed_at:.0f} s ago, good for {LIFETIME}")
    return Question(
        endpoint,
        parts.scheme,
        parts.netloc,
        values["x-amz-credential"].partition("/")[0],
        signed_at,
        tuple((_PARAMETERS[name], value) for name, value in sorted(values.items())),
        values["x-amz-signature"],
    )


def _read_query(query: str) -> dict[str, str]:
    """Read the parameters by lower-case name: those of the list, each once (STS-QUERY-001, STS-QUERY-002)."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=16)
    except ValueError:
        raise _rejected("the query is malformed or has too many parameters") from None
    # ASCII first: lower-casing folds the Kelvin sign to a `k`, and STS would read another name.
    if not all(name.isascii() for name, _ in pairs):
        raise _rejected("the name of a query parameter is not ASCII")
    values = {name.lower(): value for name, value in pairs}
    if len(values) != len(pairs):
        raise _rejected("a query parameter is given twice")
    if unknown := values.keys() - _PARAMETERS.keys():
        raise _rejected(f"{len(unknown)} query parameters are not on the list")
    if missing := _REQUIRED - values.keys():
        raise _rejected(f"query parameters are missing: {', '.join(sorted(missing))}")
    return values


def _check_values(values: dict[str, str], endpoint: Sts) -> int:
    """Check each value's form; return the date in epoch seconds."""
    if values["action"] != "GetCallerIdentity" or values["version"] != "2011-06-15":
        raise _rejected("not GetCallerIdentity of 2011-06-15")
    if values["x-amz-algorithm"] != "AWS4-HMAC-SHA256":
        raise _rejected("not signed with AWS4-HMAC-SHA256")
    scope = _CREDENTIAL.fullmatch(values["x-amz-credential"])
    date = values["x-amz-date"]
    if scope is None or _DATE.fullmatch(date) is None or scope["date"] != date[:8]:
        raise _rejected("X-Amz-Credential or X-Amz-Date is malformed, or they disagree")
    if not _EXPIRES.fullmatch(values["x-amz-expires"]) or int(values["x-amz-expires"]) > 900:
        raise _rejected("X-Amz-Expires is not 0 to 900")
    if not _SIGNATURE.fullmatch(values["x-amz-signature"]):
        raise _rejected("X-Amz-Signature is not 64 hex digits")
    security_token = values.get("x-amz-security-token")
    if security_token is not None and not _SECURITY_TOKEN.fullmatch(security_token):
        raise _rejected("X-Amz-Security-Token is malformed")
    # Exactly these two: the caller must not make another header travel.
    wanted = sorted(("host", endpoint.binding_header.lower()))
    if values["x-amz-signedheaders"].split(";") != wanted:
        raise _rejected(f"the signed headers are not exactly {';'.join(wanted)}")
    try:
        return int(datetime.fromisoformat(date).timestamp())
    except ValueError:
        raise _rejected("X-Amz-Date is not a date") from None


@dataclass(slots=True)
class _Backoff:
    """Failures in a row, and the end of the pause after them."""

    failures: int = 0
    resume_at: float = 0.0


class Flights:
    """Lets equal questions share one answer, and ends with their asker."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, asyncio.Task[Any]] = {}

    @property
    def names(self) -> Collection[Hashable]:
        """The questions that are under way, the oldest first; to join one of these lets the loop turn."""
        return [name for name, flight in self._flights.items() if not flight.done()]

    async def join(self, ticket: Hashable, ask: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Return the answer to the question of this name, which is asked unless it is under way.

        Raises:
            Refusal: as `ask`; `sts_unavailable`, the asker is closing.
        """
        flight = self._flights.get(ticket)
        if flight is None:
            flight = self._flights[ticket] = asyncio.get_running_loop().create_task(ask())
            flight.add_done_callback(lambda done: self._landed(ticket, done))
        try:
            return cast("_T", await asyncio.shield(flight))
        except asyncio.CancelledError:
            if flight.cancelled():
                raise Refusal(Reason.STS_UNAVAILABLE, "the agent is closing") from None
            raise

    def _landed(self, ticket: Hashable, flight: asyncio.Task[Any]) -> None:
        self._flights.pop(ticket, None)
        if not flight.cancelled():
            flight.exception()  # retrieved, also if every waiter has gone

    async def close(self) -> None:
        """End all; their waiters get `sts_unavailable`."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)


class Queue:
    """Lets questions about credentials wait for their turn, in the order of `Admission`.

    Args:
        monotonic: the clock.
        bounds: of `Admission`.
    """

    def __init__(self, monotonic: Clock, **bounds: Any) -> None:  # noqa: ANN401 - as `Admission`
        self.admission = Admission(monotonic, **bounds)
        self._waiting: dict[Hashable, asyncio.Future[bool]] = {}

    async def admit(self, key_id: str, source: str) -> object:
        """Wait until a question may be asked, and return its ticket; `done` must follow.

        Raises:
            Refusal: `sts_unavailable`, too many questions wait.
        """
        ticket = object()
        admitted = self._waiting[ticket] = asyncio.get_running_loop().create_future()
        self.admission.ask(ticket, key_id, source)
        try:
            self._carry_out()
            async with asyncio.timeout(MAX_WAIT):
                granted = await asyncio.shield(admitted)
        except (TimeoutError, asyncio.CancelledError) as error:
            if admitted.done() and admitted.result():
                self.done(ticket, proved=False)
            self.admission.withdraw(ticket)
            self._carry_out()
            if isinstance(error, asyncio.CancelledError):
                raise
            granted = False
        finally:
            del self._waiting[ticket]
        if not granted:
            raise Refusal(Reason.STS_UNAVAILABLE, "too many questions wait for STS")
        return ticket

    def done(self, ticket: object, *, proved: bool) -> None:
        """End the call of a question."""
        self.admission.done(ticket, proved=proved)
        self._carry_out()

    def _carry_out(self) -> None:
        start, refuse = self.admission.due()
        for tickets, granted in ((start, True), (refuse, False)):
            for ticket in tickets:
                self._waiting[ticket].set_result(granted)


class _Endpoint(Queue):
    """The order of calls to one STS, and the pauses after failures.

    Strangers can make STS throttle. So their failures pause strangers alone; a failure of a known key pauses
    all.
    """

    def __init__(self, monotonic: Clock, callers: Callers, endpoint: str) -> None:
        super().__init__(monotonic, callers=callers, endpoint=endpoint)
        self.backoffs = {True: _Backoff(), False: _Backoff()}
        """For known keys, and for strangers."""


class StsVerifier:
    """Asks STS who signed a credential; each credential is in flight once."""

    def __init__(
        self,
        endpoints: list[Sts],
        transport: Transport,
        *,
        clock: Clock = time.time,
        monotonic: Clock = time.monotonic,
        callers: Callers | None = None,
    ) -> None:
        self._by_host = {host: endpoint for endpoint in endpoints for host in endpoint.hosts}
        self._urls = {endpoint.name: endpoint.endpoint for endpoint in endpoints}
        known = callers or Callers()
        self._state = {name: _Endpoint(monotonic, known, url) for name, url in self._urls.items()}
        self._transport, self._clock, self._monotonic = transport, clock, monotonic
        self._flights = Flights()
        self._rejected: OrderedDict[bytes, tuple[float, str]] = OrderedDict()
        self._used: OrderedDict[str, float] = OrderedDict()
        """Signatures that count once, accepted or in flight, and until when they are kept, monotonic; in
        order of use."""
        self.on_used: Callable[[str, int], None] = lambda _signature, _until: None
        """Called with each accepted signature that counts once, and until when it is kept, monotonic."""
        self.counts = {"asked": 0, "accepted": 0, "rejected": 0, "throttled": 0, "unavailable": 0}
        """Calls by outcome, for metrics."""

    def succeed(self, former: StsVerifier) -> None:
        """Take over counters, queues and used signatures after a reload.

        Pauses belong to a URL: another URL under the same name in the policy starts without them.
        """
        self.counts, self._used, self.on_used = former.counts, former._used, former.on_used
        same = {name for name, url in former._urls.items() if self._urls.get(name) == url}
        self._state |= {name: state for name, state in former._state.items() if name in same}

    async def close(self) -> None:
        """End the calls in flight; their waiters get `sts_unavailable`."""
        await self._flights.close()

    async def verify(self, token: bytes, digest: bytes, source: str = "") -> tuple[Identity, bool]:
        """Verify a credential, with its prefix and its SHA-256.

        Each `source`, as `admission.client_network` names it, has its share of the calls.

        Returns:
            The identity, and whether the credential may be used again (`replay_cache` off).

        Raises:
            Refusal: as `read_credential`; `sts_rejected`, `sts_unavailable`, `claim_invalid` (account),
                `role_missing` (a user), `role_malformed`.
        """
        now = self._clock()
        question = read_credential(token, self._by_host, now)
        once = question.endpoint.replay_cache
        if (known := self._rejected.get(digest)) and self._monotonic() < known[0]:
            raise _rejected(known[1])
        until = self._use(question) if once else 0.0
        try:
            identity = await self._flights.join(digest, lambda: self._ask(question, digest, source))
        except BaseException:
            if once:
                self._used.pop(question.signature, None)  # it counts only if it is accepted
            raise
        if once:
            self.on_used(question.signature, int(until))
        return identity, not once

    def _use(self, question: Question) -> float:
        """Note that a signature is used (STS-REPLAY-001), and return until when; forget those of long ago."""
        now = self._monotonic()
        while self._used and next(iter(self._used.values())) <= now:
            self._used.popitem(last=False)
        if question.signature in self._used:
            raise _rejected("this signature was used before")
        if len(self._used) >= 1 << 20:
            raise Refusal(Reason.STS_UNAVAILABLE, "the replay cache is full")
        self._used[question.signature] = now + _KEPT
        return now + _KEPT

    def remember(self, used: Mapping[str, float]) -> None:
        """Take over signatures that another process reported by `on_used`."""
        self._used.update(used)

    async def _ask(self, question: Question, digest: bytes, source: str) -> Identity:
        state = self._state[question.endpoint.name]
        known = state.admission.knows(question.key_id, source)
        self._pausing(state, known=known)
        ticket = await state.admit(question.key_id, source)
        proved = False
        try:
            self._pausing(state, known=known)  # another call may have failed meanwhile
            caller = await self._call(question, state, known=known)
            self.counts["accepted"] += 1
            identity = self._identity(question, caller)
            proved = True  # to STS anybody is, and anybody may make it throttle his own account
        except Rejected as error:
            self.counts["rejected" if error.final else "unavailable"] += 1
            if error.final:
                self._remember(digest, str(error))
            raise _rejected(str(error)) from None
        finally:
            state.done(ticket, proved=proved)
        return identity

    def _pausing(self, state: _Endpoint, *, known: bool) -> None:
        if self._monotonic() < state.backoffs[known].resume_at:
            raise Refusal(Reason.STS_UNAVAILABLE, "STS is throttling or failing: not asked again yet")

    async def _call(self, question: Question, state: _Endpoint, *, known: bool) -> Caller:
        endpoint = question.endpoint
        self.counts["asked"] += 1
        try:
            url = check_url(question.url(), insecure_http=endpoint.insecure_http)
            headers, seconds = question.headers(), endpoint.timeout
            get = self._transport.get(url, headers=headers, seconds=seconds, max_bytes=_MAX_ANSWER)
            caller = read_answer(await get)
        except Rejected:
            raise
        except Exception as error:  # noqa: BLE001 - no verdict, whatever failed
            foreseen = isinstance(error, TransportError | Unavailable)
            detail = str(error) if foreseen else type(error).__name__
            throttled = isinstance(error, Unavailable) and error.throttled
            self.counts["throttled" if throttled else "unavailable"] += 1
            backoff = state.backoffs[known]
            backoff.failures += 1
            pause = min(_FIRST_PAUSE * 2 ** min(backoff.failures - 1, 8), _LONGEST_PAUSE)
            backoff.resume_at = self._monotonic() + pause
            if known:
                strangers = state.backoffs[False]
                strangers.resume_at = max(strangers.resume_at, backoff.resume_at)
            _log.warning("sts %s: %s, paused %.1f s", endpoint.name, detail, pause)
            raise Refusal(Reason.STS_UNAVAILABLE, detail) from None
        for backoff in state.backoffs.values():
            backoff.failures = 0
        return caller

    def refused_for(self, digest: bytes) -> float:
        """Return for how many seconds, if any, a credential is refused without a question to STS."""
        return max(0.0, self._rejected.get(digest, (0.0,))[0] - self._monotonic())

    def _remember(self, digest: bytes, detail: str) -> None:
        self._rejected[digest] = (self._monotonic() + _REJECTED_FOR, detail)
        self._rejected.move_to_end(digest)
        if len(self._rejected) > _MAX_REJECTED:
            self._rejected.popitem(last=False)

    def _identity(self, question: Question, caller: Caller) -> Identity:
        accounts = question.endpoint.accounts
        if accounts and caller.account not in accounts:
            raise Refusal(Reason.CLAIM_INVALID, "an account that this STS endpoint may not assert")
        if ":assumed-role/" not in caller.arn:
            raise Refusal(Reason.ROLE_MISSING, "the caller is a user, not a role")
        role = RoleArn.parse(caller.arn)
        return Identity(
            issuer=question.endpoint.name,
            principal=caller.arn,
            session=caller.session,
            roles=(role,),
            not_after=question.signed_at + LIFETIME,
            issued_at=question.signed_at,
            credential="sha256:" + hashlib.sha256(question.signature.encode()).hexdigest()[:16],
            key_id=question.key_id,
            check_again=int(self._clock() + question.endpoint.recheck),
            grounds=sts_grounds(question.endpoint, f"{question.scheme}://{question.host}"),
        )
