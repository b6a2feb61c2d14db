"""Reloads: a loader reads and checks the configuration, in a process of its own, within a deadline."""

from __future__ import annotations

from collections.abc import Callable

from iamroles_agent.control.channel import ChannelError, Message
from iamroles_agent.control.document import Part
from iamroles_agent.control.places import LOADER, Effect, Fork, Kill, read_part


class Loading:
    """The one loader that may be at work.

    Args:
        limit: fair seconds that it may take.
        stall: fair seconds in which it must have run, or it is stuck: a loader has no heartbeat.
        effect: takes what the shell has to do.
        propose: takes the policy that it made.
        refuse: takes the reason why there is none; called once for each load at most.
    """

    def __init__(
        self,
        limit: float,
        stall: float,
        *,
        effect: Callable[[Effect], None],
        propose: Callable[[Part], None],
        refuse: Callable[[str], None],
    ) -> None:
        self.again = False
        """Whether to read once more, because it was asked for while a reload was under way."""
        self._limit, self._stall = limit, stall
        self._ran, self._moved = 0.0, 0.0
        self._effect, self._propose, self._refuse = effect, propose, refuse
        self._began: float | None = None
        self._answered = False
        self._pieces: list[bytes] = []

    @property
    def busy(self) -> bool:
        return self._began is not None

    def start(self, now: float) -> None:
        self._began, self._answered, self._pieces = now, False, []
        self._ran, self._moved = 0.0, now
        self._effect(Fork(LOADER, ""))

    def heard(self, said: Message) -> None:
        """It said something.

        Raises:
            ChannelError: it makes no sense.
        """
        if self._answered or not self.busy:
            return
        if said.say == "piece":
            self._pieces.append(said.body)
        elif said.say == "loaded":
            held = iter(self._pieces)
            part = read_part(said.table("part"), held)
            self._answered = True
            self._propose(part)
        elif said.say == "refused":
            self.failed(said.text("error"))
        else:
            raise ChannelError(f"{said.say!r} is not expected of a loader")

    def failed(self, error: str) -> None:
        """There will be no policy of this load; nothing if it has answered."""
        if self.busy and not self._answered:
            self._answered = True
            self._effect(Kill(LOADER, error))
            self._refuse(error)

    def died(self, how: str) -> None:
        self.failed(f"the loader ended with {how}")
        self._began = None

    def watch(self, now: float, ran: float, waited: float) -> None:
        """Look at the clock: fair seconds, and the seconds that it ran on a processor and waited for one."""
        if self._began is None:
            return
        if ran + waited > self._ran:
            self._ran, self._moved = ran + waited, now
        if now - self._moved > self._stall:
            self.failed(f"the loader did nothing for {self._stall:g} s")
        elif now - self._began - waited > self._limit:
            self.failed(f"the configuration was not read within {self._limit:g} s")
