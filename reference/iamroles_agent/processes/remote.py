"""A worker's side of the fetcher's services: keys and STS.

A worker holds each key set that the parent sent, and can only ask for a fetch; `jwks` decides once for the
whole agent which question may cause a fetch, and when. Only the fetcher asks STS, so its budget, its memory
of refusals and the replay cache are one for all workers.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from iamroles_agent.base.clocks import Clock
from iamroles_agent.base.config import Issuer, KeySettings, Sts
from iamroles_agent.base.identity import Identity, RoleArn
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.processes.link import Body, Link, LinkLost
from iamroles_agent.tokens.admission import Callers
from iamroles_agent.tokens.authenticator import Signal
from iamroles_agent.tokens.keyring import Keyring, source_of
from iamroles_agent.tokens.keys import KeySet
from iamroles_agent.tokens.sts import Flights, Question, Queue, StsVerifier, read_credential

KEYS, STS = "keys", "sts"
"""Topics of questions to the fetcher."""
_BOUNDS = {"calls": 64, "kept": 16, "per_flow": 8}
"""Bounds on a worker's questions about one STS. For a source as in the fetcher, for all of them more than its
calls, so that it chooses among the sources."""
_REFUSED = 1024
"""Most credentials that a worker refuses from memory."""
_KIDS = 32
"""Most questions of a worker about one issuer's keys: an issuer that hangs takes no room of the others."""


class RemoteKeys(Keyring):
    """Keys that the fetcher fetches and the parent puts in force."""

    def __init__(self, remote: Remote, issuer: Issuer, settings: KeySettings, **more: Any) -> None:  # noqa: ANN401
        super().__init__(issuer, settings, **more)
        self._remote = remote
        self._pause_until = 0.0
        self._flights = Flights()

    async def close(self) -> None:
        self._remote.forget(self)
        await super().close()

    def configure(self, issuer: Issuer, settings: KeySettings) -> None:
        """Configure as inherited; a set that only the former policy found too old is good again.

        So a worker that lived through both policies decides like a worker that is born now.
        """
        super().configure(issuer, settings)
        self._pause_until = 0.0
        if self._keys is None:
            self._remote.bring_back(self)

    async def want(self, kid: str | None) -> None:
        """Ask for a fetch, unless the fetcher said that it cannot fetch yet.

        All that wait for the first set share a question, and so do all that wait for a kid. Anyone can write
        a kid, so above `_KIDS` of them a caller waits for the oldest question, and looks again.
        """
        while self.stale() or self._monotonic() >= self._pause_until:
            name = None if self.stale() else kid
            under_way = self._flights.names
            full = name not in under_way and len(under_way) >= _KIDS
            await self._flights.join(next(iter(under_way)) if full else name, lambda: self._ask(kid))
            if not full or (kid is not None and self.known(kid)):
                return

    async def _ask(self, kid: str | None) -> None:
        try:
            answer = await self._remote.link.ask(KEYS, {"source": source_of(self.issuer), "kid": kid})
        except LinkLost as error:
            raise Refusal(Reason.KEYS_UNAVAILABLE, str(error)) from None
        # At most a cooldown: the fetcher may have answered by a policy that was replaced meanwhile.
        self._pause_until = self._monotonic() + min(float(answer.get("pause", 0.0)), self.settings.cooldown)


class RemoteProver:
    """STS through the fetcher.

    Anyone can write a credential that only STS can tell from a good one. So here already a source has a
    limited number of questions under way, and waits with the others in its turn: a flood costs neither the
    parent nor the fetcher, and their other callers find them idle. What STS rejected is refused here for as
    long as the fetcher would refuse it without a question to STS. The fetcher has the last word.

    Args:
        link: to the fetcher.
        endpoints: the policy's `[[sts]]`.
        clock: epoch seconds.
        counts: the fetcher's calls by outcome.
        queue_of: returns an endpoint's queue, which outlives the policy.
    """

    def __init__(
        self,
        link: Link,
        endpoints: list[Sts],
        clock: Callable[[], float],
        counts: dict[str, int],
        queue_of: Callable[[Sts], Queue],
    ) -> None:
        self._link, self._clock = link, clock
        self._by_host = {host: endpoint for endpoint in endpoints for host in endpoint.hosts}
        self.counts = counts
        self._queues = {endpoint.name: queue_of(endpoint) for endpoint in endpoints}
        self._flights = Flights()
        self._refused: dict[bytes, tuple[float, Refusal]] = {}
        """By the credential's digest, until when (monotonic)."""

    async def verify(self, token: bytes, digest: bytes, source: str = "") -> tuple[Identity, bool]:
        """Verify as `StsVerifier.verify`; refuse here what cannot be a credential."""
        question = read_credential(token, self._by_host, self._clock())
        if (known := self._refused.get(digest)) and time.monotonic() < known[0]:
            raise Refusal(known[1].reason, known[1].detail)
        # A signature that counts once has no second question that could share its answer.
        name: Hashable = object() if question.endpoint.replay_cache else digest
        return await self._flights.join(name, lambda: self._ask(token, question, source))

    async def _ask(self, token: bytes, question: Question, source: str) -> tuple[Identity, bool]:
        queue, version = self._queues[question.endpoint.name], self._link.document.version
        ticket = await queue.admit(question.key_id, source)
        answer: Body = {}
        try:
            answer = await self._link.ask(STS, {"token": token.decode("latin-1"), "source": source})
        except LinkLost as error:
            raise Refusal(Reason.STS_UNAVAILABLE, str(error)) from None
        finally:
            queue.done(ticket, proved="identity" in answer)
        if "identity" in answer:
            return identity_of(answer["identity"]), bool(answer["reusable"])
        reason = answer.get("reason", Reason.STS_UNAVAILABLE)
        refusal = Refusal(Reason(reason), str(answer.get("detail", answer.get("error", ""))))
        # Not if the fetcher judged by another policy, because one of the two switches first.
        if answer.get("refused_for", 0.0) > 0.0 and answer["version"] == version:
            if len(self._refused) >= _REFUSED:
                del self._refused[next(iter(self._refused))]
            until = time.monotonic() + answer["refused_for"]
            self._refused[hashlib.sha256(token).digest()] = until, refusal
        raise refusal

    async def close(self) -> None:
        """End the questions under way."""
        await self._flights.close()


class Remote:
    """The fetcher, as an `Authenticator` of a worker sees it.

    Args:
        link: to the fetcher.
        clock: epoch seconds.
        callers: whom STS confirmed to any process of the agent.
    """

    def __init__(
        self, link: Link, clock: Callable[[], float] = time.time, callers: Callers | None = None
    ) -> None:
        self.link, self._clock, self._callers = link, clock, callers or Callers()
        self._sets: dict[str, tuple[KeySet, float]] = {}
        self._rings: dict[str, RemoteKeys] = {}
        self._queues: dict[tuple[str, str], Queue] = {}
        """By name and URL, as in the fetcher: another URL under a name begins without callers."""
        self.counts: dict[str, int] = dict.fromkeys(
            ("asked", "accepted", "rejected", "throttled", "unavailable"), 0
        )
        """The fetcher's STS calls by outcome, as last heard."""

    def keyring(self, issuer: Issuer, keys: KeySettings, on_loss: Signal, monotonic: Clock) -> RemoteKeys:
        """The keys of an issuer, with the set that is in force for it."""
        ring = RemoteKeys(self, issuer, keys, on_loss=on_loss, monotonic=monotonic)
        self._rings[source_of(issuer)] = ring
        self.bring_back(ring)
        return ring

    def forget(self, ring: RemoteKeys) -> None:
        source = source_of(ring.issuer)
        if self._rings.get(source) is ring:
            del self._rings[source]

    def bring_back(self, ring: RemoteKeys) -> None:
        """Put the set that is in force for a keyring in force again."""
        source = source_of(ring.issuer)
        if source in self._sets:
            keys, fetched_at = self._sets[source]
            self.put(source, keys.revived(), fetched_at)

    def prover(self, endpoints: list[Sts], former: object) -> RemoteProver:
        del former
        return RemoteProver(self.link, endpoints, self._clock, self.counts, self._queue)

    def _queue(self, endpoint: Sts) -> Queue:
        about = {**_BOUNDS, "callers": self._callers, "endpoint": endpoint.endpoint}
        return self._queues.setdefault((endpoint.name, endpoint.endpoint), Queue(time.monotonic, **about))

    def close(self) -> None:
        """Do nothing: the fetcher owns what could be closed."""

    def learn(self, stats: Mapping[str, Any]) -> None:
        """Take the fetcher's counters, for metrics."""
        self.counts.update(stats.get("sts", {}))
        for ring in self._rings.values():
            found = stats.get("keys", {}).get(ring.issuer.name)
            if found is not None:
                ring.fetches, ring.failures = found["fetches"], found["failures"]

    def held(self, source: str) -> KeySet | None:
        """The key set in force of a source."""
        found = self._sets.get(source)
        return None if found is None else found[0]

    def put(self, source: str, keys: KeySet | None, fetched_at: float) -> None:
        """Put a key set in force; None: it is gone."""
        if keys is None:
            self._sets.pop(source, None)
            if ring := self._rings.get(source):  # a policy may want the source still, or again
                ring.drop()
            return
        self._sets[source] = keys, fetched_at
        if ring := self._rings.get(source):
            ring.put(keys, fetched_at)

    def confirm(self, source: str, fetched_at: float) -> None:
        """Note that the set of a source was good at a later time; bring it back if it had grown too stale."""
        if source not in self._sets:
            return
        keys = self._sets[source][0]
        ring = self._rings.get(source)
        if ring is not None and ring.keys is None:
            self.put(source, keys.revived(), fetched_at)
            return
        self._sets[source] = keys, fetched_at
        if ring is not None:
            ring.confirm(fetched_at)


async def answer_sts(prover: StsVerifier, body: Mapping[str, Any]) -> dict[str, Any]:
    """Answer a worker's question, in the fetcher."""
    token = str(body["token"]).encode("latin-1")
    digest = hashlib.sha256(token).digest()
    try:
        identity, reusable = await prover.verify(token, digest, str(body.get("source", "")))
    except Refusal as refusal:
        seconds = prover.refused_for(digest)
        return {"reason": refusal.reason.value, "detail": refusal.detail, "refused_for": seconds}
    members = identity._asdict()
    members["roles"] = [str(role) for role in identity.roles]
    members["preferred"] = None if identity.preferred is None else str(identity.preferred)
    members["scopes"] = None if identity.scopes is None else sorted(identity.scopes)
    return {"identity": members, "reusable": reusable}


def identity_of(members: Mapping[str, Any]) -> Identity:
    """Read an identity that `answer_sts` wrote."""
    preferred, scopes = members["preferred"], members["scopes"]
    return Identity(
        **{
            **members,
            "roles": tuple(RoleArn.parse(role) for role in members["roles"]),
            "preferred": None if preferred is None else RoleArn.parse(preferred),
            "scopes": None if scopes is None else frozenset(scopes),
            "grounds": tuple(members["grounds"]),
        }
    )
