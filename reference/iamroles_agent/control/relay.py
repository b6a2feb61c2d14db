"""What the parent only passes on between the courier and the workers, without a look at the bodies.

An `ask` of a worker is kept until it is answered: a courier that dies takes no question along, because the
next one is asked again (all topics are safe to ask twice). An answer that the courier marked `after` is held
back until the changes that it proposed before are in force everywhere: a worker that asked for a key is told
only when it has the key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from iamroles_agent.control.channel import Message, message

COURIER = -1
MAX_ASKS = 4096
"""Questions of one worker that are under way; more are answered `busy`."""


@dataclass(slots=True)
class _Ask:
    worker: int
    number: int
    asked: Message


class Relay:
    """See the module.

    Args:
        send: puts a message into a member's channel; False where there is no such member now.
        workers: how many places of workers there are.
    """

    def __init__(self, send: Callable[[int, Message], bool], workers: int) -> None:
        self._send = send
        self._workers = workers
        self._asks: dict[int, _Ask] = {}
        self._serial = 0
        self._counts: dict[int, int] = {}
        self._held: list[tuple[int, int, Message]] = []
        self._courier = False
        """Whether there is a courier that can answer."""
        self._settled = 0
        self.proposed = 0
        """Number of the last proposal of the courier; the plane counts."""

    def heard(self, index: int, said: Message) -> bool:
        """Take a message; False if it is not one that is relayed."""
        handle = (self._OF_COURIER if index == COURIER else self._OF_WORKERS).get(said.say)
        if handle is None:
            return False
        handle(self, index, said)
        return True

    def gone(self, index: int) -> None:
        """A member died: what it asked is of no use any more."""
        if index == COURIER:
            self._courier = False
            self._held.clear()  # those questions are asked again
            return
        for serial in [serial for serial, ask in self._asks.items() if ask.worker == index]:
            del self._asks[serial]
        self._counts.pop(index, None)
        self._send(COURIER, message("gone", worker=index))

    def courier_up(self) -> None:
        """A courier is ready: ask it what the one before has not answered."""
        self._courier = True
        for ask in self._asks.values():
            self._send(COURIER, ask.asked)

    def settled(self, number: int) -> None:
        """All proposals up to this one are in force or given up."""
        self._settled = max(self._settled, number)
        ready = [held for held in self._held if held[0] <= self._settled]
        self._held = [held for held in self._held if held[0] > self._settled]
        for _, serial, said in ready:
            self._answer(serial, said)

    def _ask(self, index: int, said: Message) -> None:
        number = said.number("id")
        if self._counts.get(index, 0) >= MAX_ASKS:
            self._send(index, message("answer", id=number, body={"error": "busy"}))
            return
        self._serial += 1
        asked = message(
            "ask", serial=self._serial, worker=index, topic=said.text("topic"), body=said.table("body")
        )
        self._asks[self._serial] = _Ask(index, number, asked)
        self._counts[index] = self._counts.get(index, 0) + 1
        if self._courier:  # one that is being built could not answer yet; `courier_up` asks it
            self._send(COURIER, asked)

    def _answered(self, _index: int, said: Message) -> None:
        serial = said.number("serial")
        if said.head.get("after") is True and self.proposed > self._settled:
            self._held.append((self.proposed, serial, said))
        else:
            self._answer(serial, said)

    def _answer(self, serial: int, said: Message) -> None:
        ask = self._asks.pop(serial, None)
        if ask is not None:
            self._counts[ask.worker] = self._counts.get(ask.worker, 1) - 1
            self._send(ask.worker, message("answer", id=ask.number, body=said.table("body")))

    def _report(self, index: int, said: Message) -> None:
        self._send(
            COURIER, message("report", worker=index, topic=said.text("topic"), body=said.table("body"))
        )

    def _tell(self, _index: int, said: Message) -> None:
        told = message("tell", topic=said.text("topic"), body=said.table("body"))
        for index in range(self._workers):
            self._send(index, told)

    _OF_COURIER: ClassVar[dict[str, Callable[[Relay, int, Message], None]]] = {
        "answer": _answered,
        "tell": _tell,
    }
    _OF_WORKERS: ClassVar[dict[str, Callable[[Relay, int, Message], None]]] = {
        "ask": _ask,
        "report": _report,
    }
