"""Renewal: a fresh credential prolongs open streams, in the backends whose policy says `renew`.

Theory of operation
-------------------
HAProxy keeps each credential that it saw in such a backend, allowed, in the table `iam-fresh`: the client's
address and the first part of the ticket. So any worker of any agent may have answered, and an agent that
was restarted knows what its predecessor knew. No agent looks at that table until a stream is about to end.
Then the credential is chosen that lets it live longest, by judging the stream's own request with it, and the
stream's entry in `iam-live` gets its end. The filter looks at that entry when the first credential has run
out; without an agent that end stays, and the stream ends when it would have.

What prolonged a stream must be known for as long as it lives, because it may be revoked. At a reload
HAProxy's old worker drops the table, but sends it to the new worker first (`peers iam-peers`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from iamroles_agent.live.console import TABLE, WAITING, Stream
from iamroles_agent.live.judge import EXPIRED, UNKNOWN, Ends, whose
from iamroles_agent.live.ticket import Ticket, TicketError


class Judge(Protocol):
    """Judges a stream again."""

    def __call__(self, ticket: str, expires: int, fresh: str, before: Ends | None = None, /) -> Ends:
        """See `judge.judge`."""


@dataclass(frozen=True, slots=True)
class Fresh:
    """A credential that was seen."""

    src: str
    who: str
    """First part of its ticket."""
    expires: int
    """Epoch seconds."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """A stream that is prolonged."""

    stream: Stream
    successor: Ticket
    until: int
    """Epoch seconds."""
    fresh: Fresh

    def commands(self) -> list[str]:
        """The commands for the worker."""
        stream = self.stream
        return [
            f"set table {table} key {key} data.gpt0 {self.until}"
            for table, key in ((TABLE, stream.key), (WAITING, f"{stream.number}|{stream.ticket}"))
        ]


class Successors:
    """Fresh credentials, found by client, identity, role and backend."""

    def __init__(self, seen: Iterable[Fresh] = ()) -> None:
        self._known: dict[tuple[str, ...], set[Fresh]] = {}
        for fresh in seen:
            try:
                key = (fresh.src, *whose(Ticket.decode(fresh.who)))
            except TicketError:
                continue
            self._known.setdefault(key, set()).add(fresh)

    def matching(self, stream: Stream) -> set[Fresh]:
        """Those of the same client, issuer, principal, session, role and backend as a stream."""
        ticket = stream.decoded()
        if ticket is None or not ticket.identity.session:  # no session is not the same session
            return set()
        return self._known.get((stream.src, *whose(ticket)), set())

    def renewal(self, stream: Stream, judge: Judge) -> list[Renewal]:
        """Choose the credential by which a stream lives longest; none if it would end sooner."""
        best, until = None, stream.ends
        for fresh in self.matching(stream):
            ends = judge(stream.ticket, fresh.expires, fresh.who)
            if ends.cause == EXPIRED and ends.at > until:
                best, until = fresh, int(ends.at)
        if best is None:
            return []
        return [Renewal(stream, Ticket.decode(best.who), until, best)]

    def judge(self, stream: Stream, judge: Judge, now: float) -> Ends:
        """Judge a stream that was prolonged: by the best of those that may have prolonged it.

        While its own credential lasts, that is one of them.
        """
        worst = Ends(0, UNKNOWN, "what prolonged it is no longer known")
        best: Ends | None = None
        if now < stream.expires:
            own = judge(stream.ticket, stream.expires, "")
            best, worst = (own, worst) if own.cause == EXPIRED else (None, own)
        for fresh in self.matching(stream):
            ends = judge(stream.ticket, min(fresh.expires, stream.ends), fresh.who)
            if ends.cause != EXPIRED:
                worst = ends
            elif best is None or ends.at > best.at:
                best = ends
        return best or worst
