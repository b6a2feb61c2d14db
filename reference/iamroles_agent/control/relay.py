"""Questions of the workers to the fetcher, which the parent passes on without a look at the bodies.

A question is kept until it is answered: a fetcher that dies takes no question along, because the next one is
asked again (all topics are safe to ask twice). An answer that the fetcher marked `after` is held back until
the changes that it proposed before are in force everywhere: a worker that asked for a key gets its answer
only when it has the key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from iamroles_agent.control.channel import Message, message
from iamroles_agent.control.slots import FETCHER

MAX_ASKS = 4096
"""Questions of a worker that may be under way; more are answered `busy`."""


@dataclass(slots=True)
class _Ask:
    worker: int
    number: int
    asked: Message


class Relay:
    """See the module.

    Args:
        send: puts a message into a member's channel, if there is such a member now.
    """

    def __init__(self, send: Callable[[int, Message], object]) -> None:
        self._send = send
        self._asks: dict[int, _Ask] = {}
        self._serial = 0
        self._counts: Counter[int] = Counter()
        self._held: list[tuple[int, Message]] = []
        """Answers, each with the number of proposals that must have ended before."""
        self._up = False
        """True while there is a fetcher that can answer."""
        self.proposed = self._ended = 0
        """Proposals of fetchers, and those of them that are in force or given up."""

    def lost(self, index: int) -> None:
        """A member has died: nobody waits for the answers to its questions."""
        if index == FETCHER:
            self._up = False
            self._held.clear()  # those questions are asked again
            return
        for serial in [serial for serial, ask in self._asks.items() if ask.worker == index]:
            del self._asks[serial]
        del self._counts[index]

    def fetcher_up(self) -> None:
        """A fetcher is ready: ask it what its predecessor has not answered."""
        if self._up:
            return
        self._up = True
        for ask in self._asks.values():
            self._send(FETCHER, ask.asked)

    def ended(self, count: int) -> None:
        """Give the answers that were held back for the first `count` proposals, which have ended."""
        self._ended = count
        held, self._held = self._held, []
        for proposals, said in held:
            self._answer_after(proposals, said)

    def ask(self, index: int, said: Message) -> None:
        """A worker asks the fetcher."""
        number = said.number("id")
        if self._counts[index] >= MAX_ASKS:
            self._send(index, message("answer", id=number, body={"error": "busy"}))
            return
        self._serial += 1
        asked = message("ask", id=self._serial, topic=said.text("topic"), body=said.table("body"))
        self._asks[self._serial] = _Ask(index, number, asked)
        self._counts[index] += 1
        if self._up:  # a fetcher that is still being built could not answer; `fetcher_up` asks it
            self._send(FETCHER, asked)

    def answer(self, said: Message) -> None:
        """The fetcher answers."""
        self._answer_after(self.proposed if said.head.get("after") is True else 0, said)

    def _answer_after(self, count: int, said: Message) -> None:
        if count > self._ended:
            self._held.append((count, said))
        elif (ask := self._asks.pop(said.number("id"), None)) is not None:
            self._counts[ask.worker] -= 1
            self._send(ask.worker, message("answer", id=ask.number, body=said.table("body")))
