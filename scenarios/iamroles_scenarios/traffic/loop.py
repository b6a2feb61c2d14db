"""The loop: one thread, one epoll, many connections, and a stop-watch that it does not hold itself.

How it measures
    A request has three moments. *Due*: when the timetable wanted it. *Sent*: the clock just before `send`.
    *Received*: the kernel's stamp on the last byte of the answer. From sent to received is what the gate
    took; from due to received is what a user suffered, waiting for a free connection included. Both are kept,
    and so is `noticed`, when this process saw the answer: how a generator without the kernel's help would
    have measured.

    All three are of CLOCK_REALTIME, because the kernel's stamps are. `Steps` says when that clock jumped.

How it knows that it was late
    This process may itself be busy, or not be run. Received does not suffer from that, due and sent do: a
    request that was due, on a connection that was free, was sent late by this process's own fault. That is
    its *lag*, recorded with each sample. Besides, each turn of the loop has a planned length; what a turn
    took beyond it is a *stall*.

How it drives
    Open: requests are due by a timetable, whatever the answers do. With no connection free they queue, and
    their clock runs. Closed: each connection sends its next request when it has its answer; due is then sent.
    Nothing here allocates, logs or computes more than it must while it measures; the caller runs the loop in
    slices and does its own work in between, at the price of lag.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from iamroles_scenarios.traffic.clients import Client
from iamroles_scenarios.traffic.polling import NANO, Poller, Steps, now
from iamroles_scenarios.traffic.questions import Asked, Case, Question
from iamroles_scenarios.traffic.records import Records

NEVER = 1 << 62
_KEEP = 100_000_000
"""Nanoseconds between two looks at deadlines and clocks."""
STALL = 5_000_000
"""Nanoseconds beyond its plan from which on a turn of the loop is noted as a stall."""
_REST = 10_000_000
"""Nanoseconds until a client of a closed loop asks again after a fault."""
_EXAMPLES = 20


@dataclass(slots=True)
class Tally:
    """The counts of a loop.

    Args:
        answers: how many came, right or wrong.
        wrong: answers that were not the right ones.
        faults: requests without an answer.
        stray: times that a server sent what nobody had asked for.
        owed: requests that were due and never sent.
        waited: how long each of these had waited at the end, nanoseconds.
        stalls: begin and length of turns that took too long, nanoseconds.
        steps: of the clock, nanoseconds.
        unstamped: answers without a kernel stamp.
        lost: connections that a server closed between two requests.
        held: streams that were open at the end.
        examples: of what went wrong, in words.
    """

    answers: int = 0
    wrong: int = 0
    faults: int = 0
    stray: int = 0
    owed: int = 0
    waited: list[int] = field(default_factory=list)
    stalls: list[tuple[int, int]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    unstamped: int = 0
    lost: int = 0
    held: int = 0
    examples: list[str] = field(default_factory=list)


class Loop:
    """Drives clients.

    Args:
        questions: what is asked, without an end.
        timetable: nanoseconds from `start` at which requests are due (`timetable.arrivals`); None: closed.
        patience: seconds after which a request without an answer is a fault.
    """

    def __init__(
        self, questions: Iterator[Question], timetable: Iterator[int] | None = None, *, patience: float = 5.0
    ) -> None:
        self.records = Records()
        self.tally = Tally()
        self._next_question = questions.__next__
        self._timetable = timetable
        self._patience = round(patience * NANO)
        self._epoll = Poller()
        self._by_number: dict[int, Client] = {}
        self._clients: list[Client] = []
        self._idle: deque[Client] = deque()
        self._backlog: deque[int] = deque()
        self._resting: deque[tuple[int, Client]] = deque()
        self._steps = Steps()
        self._begin = 0
        self._due = NEVER
        self._planned = 0
        self._checked = 0
        self._opening = self._ending = False

    @property
    def stamped(self) -> bool:
        """Latencies are by the kernel's stamps: at most one answer is outstanding on each connection.

        The kernel begins to stamp some milliseconds after the first socket asked for it.
        """
        few = self.tally.unstamped * 1000 <= self.tally.answers
        return all(client.slots == 1 for client in self._clients) and few

    # --- for clients ----------------------------------------------------------------------------------------

    def watch(self, client: Client, number: int, mask: int) -> None:
        self._epoll.register(number, mask)
        self._by_number[number] = client

    def modify(self, client: Client, number: int, mask: int) -> None:
        self._epoll.modify(number, mask)
        self._by_number[number] = client

    def forget(self, number: int) -> None:
        """A socket is about to be closed."""
        if self._by_number.pop(number, None) is not None:
            self._epoll.unregister(number)

    def idle_again(self, client: Client) -> None:
        """A client has opened that nothing waits for."""
        self._idle.extend([client] * client.slots)

    def answered(self, client: Client, asked: Asked, status: int, text: bytes) -> None:
        """Judge and record an answer, and let the client go on."""
        question = asked.question
        wrong = question.judge(status, text, asked.sent, asked.received)
        if wrong:
            self.tally.wrong += 1
            question.case.wrong += 1
            self._example(question.case, wrong)
        if question.endless:  # it has ended
            if not wrong:
                self.broke(client, asked, "the stream ended")
            return
        self.right(client, asked, question.right.number(text) if question.right.marker else -1)

    def right(self, client: Client, asked: Asked, reported: int = -1) -> None:
        """Record an answer that needs no judging, and let the client go on."""
        received, noticed = asked.received, asked.noticed
        if received == noticed and client.slots == 1:
            self.tally.unstamped += 1
        self.records.add(
            asked.question.case.number, asked.due, asked.sent, received, noticed, asked.lag, reported
        )
        self._next(client)

    def broke(self, client: Client, asked: Asked | None, why: str) -> None:
        """A client lost its connection; what was asked had no answer."""
        if asked is None:
            if self._opening:
                self._example(None, why)
                if client not in self._idle:
                    self.idle_again(client)
            else:
                self.tally.lost += 1
            return
        question = asked.question
        question.lost(asked.sent, now(), why)
        self.tally.faults += 1
        question.case.faults += 1
        self._example(question.case, why)
        if question.endless:
            return  # the client was for that stream alone
        if self._timetable is None:
            self._resting.append((now() + _REST, client))
        else:
            self._idle.append(client)

    def stray(self, why: str) -> None:
        """A server sent what nobody had asked for."""
        self.tally.stray += 1
        self._example(None, why)

    def _next(self, client: Client) -> None:
        self.tally.answers += 1
        if self._ending:
            return
        if self._timetable is None:
            client.ask(0, self._next_question())
        elif self._backlog:
            client.ask(self._backlog.popleft(), self._next_question())
        else:
            self._idle.append(client)

    def _let_go(self, question: Question, status: int, text: bytes) -> None:
        self.tally.held += 1
        if wrong := question.right.wrong(status, text):
            self.tally.wrong += 1
            question.case.wrong += 1
            self._example(question.case, f"a held stream: {wrong}")

    def _example(self, case: Case | None, what: str) -> None:
        kept = self.tally.examples if case is None else case.examples
        if len(kept) < _EXAMPLES:
            kept.append(what)

    # --- for the caller ------------------------------------------------------------------------------------

    def open(self, clients: Sequence[Client], within: float = 5.0) -> None:
        """Take clients and connect them, before anything is measured.

        A client that cannot connect tries again when it is first asked something; `tally.examples` says why.
        """
        self._clients = list(clients)
        self._opening = True
        deadline = now() + round(within * NANO)
        for client in self._clients:
            client.connect()
        wanted = sum(client.slots for client in self._clients)
        while len(self._idle) < wanted and now() < deadline:
            self._poll(_KEEP)
        self._opening = False
        late = {id(client): client for client in self._clients}
        for client in self._idle:
            late.pop(id(client), None)
        for client in late.values():
            self._example(None, "no connection in time")
            client.close()
            self.idle_again(client)

    def hold(self, clients: Sequence[Client], question: Question) -> None:
        """Open a stream on each of these clients and wait for its begin; a stream that ends is a fault."""
        for client in clients:
            client.ask(0, question)
        self._clients += clients
        deadline = now() + self._patience
        while now() < deadline and any(
            stream and not stream[1] for stream in (one.held() for one in clients)
        ):
            self._poll(_KEEP)

    def start(self, at: int | None = None) -> int:
        """Let the timetable begin, now or at a given moment; a closed loop sends its first requests."""
        begin = now() if at is None else at
        self._begin = self._planned = self._checked = begin
        if self._timetable is None:
            first, self._idle = list(self._idle), deque()
            for client in first:
                client.ask(0, self._next_question())
        else:
            self._due = begin + next(self._timetable, NEVER)
        return begin

    def run(self, until: int) -> None:
        """Drive the clients until this moment of CLOCK_REALTIME."""
        idle, backlog, question = self._idle, self._backlog, self._next_question
        while True:
            at = now()
            if at - self._planned > STALL:
                self.tally.stalls.append((self._planned, at - self._planned))
            due, last = self._due, min(at, until)
            while due <= last:
                if idle:
                    idle.popleft().ask(due, question())
                else:
                    backlog.append(due)
                due = self._begin + next(self._timetable, NEVER)  # type: ignore[arg-type]
            self._due = due
            if at >= until:
                self._planned = at
                return
            wait = min(until, due) - at
            self._planned = at + wait
            self._poll(wait)
            if at - self._checked > _KEEP:
                self._look(at)

    def _poll(self, wait: int) -> None:
        clients = self._by_number
        for number, mask in self._epoll.poll(wait):
            client = clients.get(number)
            if client is not None:
                client.event(mask)

    def _look(self, at: int) -> None:
        self._checked = at
        while self._resting and self._resting[0][0] <= at and not self._ending:
            self._resting.popleft()[1].ask(0, self._next_question())
        before = at - self._patience
        for client in self._clients:
            if client.overdue(before):
                client.lost(f"no answer within {self._patience / NANO:g} s")
        if step := self._steps.look():
            self.tally.steps.append(step)

    def finish(self, stop: Callable[[], bool] | None = None) -> None:
        """Send nothing more; wait for what is under way, for as long as patience allows; close all clients.

        Args:
            stop: asked now and then: whether to give up waiting.
        """
        self._ending = True
        self._due = NEVER
        end = now()
        self.tally.owed, self.tally.waited = len(self._backlog), [end - due for due in self._backlog]
        self._backlog.clear()
        deadline = end + self._patience
        while any(client.busy for client in self._clients) and now() < deadline:
            self._poll(_KEEP)
            if stop is not None and stop():
                break
        if step := self._steps.look():
            self.tally.steps.append(step)
        for client in self._clients:
            if client.busy:
                client.lost("no answer by the end")
            if (stream := client.held()) is not None:
                self._let_go(*stream)
            client.close()
        self._epoll.close()
        self._epoll = Poller()
