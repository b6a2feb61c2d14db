"""Renewal: a fresh credential prolongs open streams, in the backends whose policy says `renew`.

Theory of operation
-------------------
HAProxy keeps each credential that it saw in such a backend, allowed, in the table `iam-fresh`: the client's
address and the first part of the ticket. So any worker of any agent may have answered, and an agent that
was restarted knows what its predecessor knew. Nobody looks at that table until a stream is about to end.
Then the credential is chosen that lets it live longest, by judging the stream's own request with it, and the
stream's entry in `iam-live` gets its end. The filter looks at that entry when the first credential has run
out; without an agent nobody moves it, and the stream ends when it would have.

What prolonged a stream must be known for as long as it lives, because it may be revoked. So the chosen
credential is written into the same process as well, which may be an old worker after a reload.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from iamroles_agent.live.console import FRESH, TABLE, Row
from iamroles_agent.live.judge import EXPIRED, UNKNOWN, Ends, whose
from iamroles_agent.live.ticket import Ticket, TicketError

Judge = Callable[[str, int, str], Ends]
"""Judges a stream anew: its ticket, an end in epoch seconds, the first part of a fresh ticket or ""."""


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
    """A stream that was prolonged, for the record."""

    row: Row
    ticket: Ticket
    successor: Ticket
    until: int
    """Epoch seconds."""


class Successors:
    """Fresh credentials by whom they are about.

    Args:
        seen: client address, first part of the ticket, expiry.
    """

    def __init__(self, seen: Iterable[tuple[str, str, int]] = ()) -> None:
        self._known: dict[tuple[str, ...], set[Fresh]] = {}
        for src, who, expires in seen:
            try:
                key = (src, *whose(Ticket.decode(who)))
            except TicketError:
                continue
            self._known.setdefault(key, set()).add(Fresh(src, who, expires))

    def of(self, row: Row) -> set[Fresh]:
        """Those of the same client, issuer, principal, session, role and backend as a stream."""
        try:
            return self._known.get((row.src, *whose(Ticket.decode(row.ticket))), set())
        except TicketError:
            return set()

    def best(self, row: Row, judge: Judge) -> tuple[Fresh | None, int]:
        """Which one lets a stream live longest, and until when; None and 0 where there is none."""
        found, until = None, 0
        for fresh in self.of(row):
            ends = judge(row.ticket, fresh.expires, fresh.who)
            if ends.cause == EXPIRED and ends.at > until:
                found, until = fresh, int(ends.at)
        return found, until

    def judge(self, row: Row, judge: Judge) -> Ends:
        """Judge a stream that was prolonged: by the best of those that may have prolonged it."""
        worst = Ends(0, UNKNOWN, "what prolonged it is not known any more")
        best: Ends | None = None
        for fresh in self.of(row):
            ends = judge(row.ticket, min(fresh.expires, row.ends), fresh.who)
            if ends.cause != EXPIRED:
                worst = ends
            elif best is None or ends.at > best.at:
                best = ends
        return best or worst


def commands(row: Row, fresh: Fresh, until: int) -> tuple[str, str]:
    """What tells a worker of HAProxy that a stream lives on: first by whom, then until when."""
    return (
        f"set table {FRESH} key {fresh.src}|{fresh.who} data.gpt0 {fresh.expires}",
        f"set table {TABLE} key {row.key} data.gpt0 {until}",
    )
