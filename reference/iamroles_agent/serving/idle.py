"""Idle connections: the longest idle gives its place to another when all are taken, and none idles for ever.

Nothing is noted while questions are answered. A look once in a while compares each connection's number of
questions with the number at the look before. A connection that sent half a frame, or takes no answers, counts
as idle once it was found so for `IDLE`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iamroles_agent.serving.server import _Peer

IDLE = 2.0
"""Seconds without a question after which a connection may lose its place."""
_LOOK = 30.0
"""Seconds at most between two looks."""


class Idle:
    """Ends idle ones of some connections.

    Args:
        peers: all that are open, at any time.
        longest: seconds after which an idle connection is ended.
    """

    def __init__(self, peers: Collection[_Peer], longest: float) -> None:
        self._peers, self._longest = peers, longest
        self._loop = asyncio.get_running_loop()
        self._found: list[_Peer] = []
        """Idle at the last look, the longest last."""
        self._stuck: dict[_Peer, float] = {}
        """Those that are stuck, and the time of the look that first found them so."""
        self._looked = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._look()

    def make_room(self) -> bool:
        """End the connection that was idle the longest, so that another may come; false if none is idle."""
        if self._loop.time() - self._looked >= IDLE:
            self._look()
        while self._found:
            peer = self._found.pop()
            if peer in self._peers and self._ended(peer, "another connection needs the place"):
                return True
        return False

    def _ended(self, peer: _Peer, why: str) -> bool:
        """End a connection that is idle, or was found stuck for long; return whether it was ended."""
        now = self._loop.time()
        stuck = now - self._stuck.get(peer, now) >= min(IDLE, self._longest) and peer.stuck_since(peer.seen)
        return (stuck or peer.idle_since(peer.seen)) and peer.say_goodbye(why)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        """Note which are idle, and end those that are idle for too long."""
        self._looked = now = self._loop.time()
        self._stuck = {p: self._stuck.get(p, now) for p in self._peers if p.stuck_since(p.seen)}
        for peer in self._peers:
            if peer.asked != peer.seen:
                peer.seen, peer.since = peer.asked, now
        idle = [peer for peer in self._peers if now - peer.since >= min(IDLE, self._longest)]
        self._found = sorted(idle, key=lambda peer: peer.since, reverse=True)
        while self._found and now - self._found[-1].since >= self._longest:
            peer = self._found.pop()
            self._ended(peer, "nothing was asked for long")
        self.stop()
        self._timer = self._loop.call_later(min(_LOOK, self._longest / 10), self._look)
