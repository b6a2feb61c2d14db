"""An impostor: it stands before the agent as a `Breaker`, and takes the agent's place when a check says so.

HAProxy asks at the same address all the time. As an impostor it lets everybody in with an admin's role, or
answers as the check says, over plain SPOP or over TLS, and keeps what it was asked.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from iamroles_scenarios.stage.breaker import Breaker
from iamroles_scenarios.wire.blunt import Manner, Peer, ack, greeted
from iamroles_scenarios.wire.frames import Frame


class Impostor(Breaker):
    """See the module.

    Args:
        host: where to listen, as `Breaker`.
        to: `host:port` of the agent.
        backend: where it sends all requests.
        answer: makes the bytes that answer a question, and says whether the connection ends behind them.
    """

    def __init__(
        self,
        host: str,
        to: str,
        *,
        backend: str,
        answer: Callable[[Frame], tuple[bytes, bool]] | None = None,
    ) -> None:
        self._answer = answer
        self._acts = False
        self._manner = Manner(0.0, backend)
        self.asked: list[bytes] = []
        """The questions that HAProxy asked it."""
        super().__init__(host, to)

    def takes_over(self, tls: ssl.SSLContext | None) -> None:
        """Answer in the agent's place from now on, plain if without `tls`."""
        self._begin(tls, acts=True)

    def leaves(self) -> None:
        """Pass all on to the agent again."""
        self._begin(None, acts=False)

    def _begin(self, tls: ssl.SSLContext | None, *, acts: bool) -> None:
        self.breaks("refused")
        self._acts = acts
        self.shows(tls)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._acts:
            await super()._accepted(reader, writer)
            return
        self._tried.release()
        try:
            if self._tls is not None:
                await writer.start_tls(self._tls)
            await self._allow(Peer(reader, writer, self._manner))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    async def _allow(self, peer: Peer) -> None:
        @greeted
        async def behave(peer: Peer, frame: Frame) -> None:
            self.asked.append(frame.payload)
            said, ends = self._answer(frame) if self._answer else (ack(frame, peer.verdict()), False)
            await peer.write(said)
            if ends:
                peer.writer.close()

        await behave(peer)
