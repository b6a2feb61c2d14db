"""Reloads: a loader reads and checks the configuration, in a process of its own, within a deadline."""

from __future__ import annotations

from iamroles_agent.control.changes import Changes, Outcome
from iamroles_agent.control.channel import ChannelError, Message, message, read_parts
from iamroles_agent.control.slots import DETAIL, LOADER, Fork, Kill, Members, Print


class Reloads:
    """The loader that may be at work, and what it reports to the operator.

    Args:
        members: the other processes.
        changes: takes the policy that the loader made.
    """

    def __init__(self, members: Members, changes: Changes) -> None:
        self._members, self._changes = members, changes
        self._again = False
        """True if SIGHUP came while a reload was under way: then load once more."""
        self._began: float | None = None
        self._used, self._moved = 0.0, 0.0
        """CPU seconds, run or waited for, and the fair time at which they last grew."""
        self._answered = False
        self._pieces: list[bytes] = []

    @property
    def busy(self) -> bool:
        """True while there is a loader."""
        return self._began is not None

    @property
    def pending(self) -> bool:
        """True while the last SIGHUP has no outcome."""
        return self._again or (self.busy and not self._answered) or self._changes.reloading

    def load(self) -> None:
        """The configuration may have changed (SIGHUP)."""
        if self._members.stopping:
            self._report({"done": False, "error": "the agent is stopping"})
            return
        self._again = self.busy or self._changes.reloading  # the file may have changed after it was read
        if not self._again:
            self._began = self._moved = self._members.fair
            self._used, self._answered, self._pieces = 0.0, False, []
            self._members.emit(Fork(LOADER, ""))

    def heard(self, said: Message) -> None:
        """The loader said something.

        Raises:
            ChannelError: it makes no sense.
        """
        if self._answered or not self.busy:
            return
        if said.say == "piece":
            self._pieces.append(said.body)
        elif said.say == "loaded":
            edits = read_parts(said, self._pieces)
            self._answered = True
            self._changes.propose(edits, self._finished, reload=True)
        elif said.say == "refused":
            self.failed(said.text("error"))
        else:
            raise ChannelError(f"{said.say!r} is not expected of a loader")

    def failed(self, error: str) -> None:
        """This load brings no policy; does nothing after the loader's answer."""
        if self.busy and not self._answered:
            self._answered = True
            self._members.emit(Kill(LOADER, error))
            self._report({"done": False, "error": error})

    def died(self, how: str) -> None:
        self.failed(f"the loader ended with {how}")
        self._began = None
        self._load_again()

    def watch(self) -> None:
        """Look at the clock: a loader has no heartbeat, but it must use CPU time."""
        if self._began is None:
            return
        now, timing, scheduled = self._members.fair, self._members.timing, self._members.scheduled(LOADER)
        waited = scheduled.since(0.0)
        used = scheduled.ran + waited
        if used > self._used:
            self._used, self._moved = used, now
        if now - self._moved > timing.stall:
            self.failed(f"the loader did nothing for {timing.stall:g} s")
        elif now - self._began - waited > timing.load:
            self.failed(f"the configuration was not read within {timing.load:g} s")

    def _finished(self, outcome: Outcome) -> None:
        self._report(outcome)
        self._load_again()

    def _report(self, outcome: Outcome) -> None:
        """Print the outcome of a reload; each worker records a refusal."""
        document = self._changes.document
        line = {"reloaded": outcome["done"], "policy": document.policy, **outcome}
        del line["done"]
        self._members.emit(Print({**line, "version": document.version}))
        if not outcome["done"]:
            for slot in self._members.workers:
                note = message("note", event="refused", detail=outcome["error"][:DETAIL])
                self._members.send(slot.index, note)

    def _load_again(self) -> None:
        if self._again:
            self.load()
