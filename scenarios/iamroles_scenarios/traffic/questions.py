"""Questions and their right answers.

A load test that only counts status 200 measures how fast a gate is wrong. So each question says what its
answer must be, in terms that cost nanoseconds to compare: a status, and byte strings that the answer must and
must not hold. For SPOP the status is the variable `status` of the answer, and the strings are looked for in
its variables, one `name=value` a line.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

NUMBER = b"@" * 16
"""In the bytes of a SPOP question: replaced by a number that is new each time."""


@dataclass(frozen=True, slots=True)
class Right:
    """The right answer.

    Args:
        status: HTTP's, or the agent's variable `status`; 0: any.
        holds: each of these must be in it.
        lacks: none of these may be.
        marker: the decimal number that follows it in the answer is recorded with the sample.
    """

    status: int = 200
    holds: tuple[bytes, ...] = ()
    lacks: tuple[bytes, ...] = ()
    marker: bytes = b""

    def wrong(self, status: int, text: bytes) -> str:
        """Say what is wrong with an answer; "" if it is right."""
        if status != self.status and self.status:
            return f"status {status} where {self.status} is right"
        for piece in self.holds:
            if piece not in text:
                return f"the answer lacks {_shown(piece)}; it is {_shown(text[-300:])}"
        for piece in self.lacks:
            if piece in text:
                return f"the answer holds {_shown(piece)}"
        return ""

    def number(self, text: bytes) -> int:
        """Read the number behind the marker; -1 without one."""
        if not self.marker:
            return -1
        _, found, rest = text.partition(self.marker)
        digits = len(rest) - len(rest.lstrip(b"0123456789")) if found else 0
        return int(rest[:digits]) if digits else -1


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "backslashreplace").__repr__()


class Case:
    """Questions of a kind, which are counted together."""

    __slots__ = ("examples", "faults", "name", "number", "wrong")

    def __init__(self, name: str, number: int = 0) -> None:
        self.name = name
        self.number = number
        self.wrong = self.faults = 0
        self.examples: list[str] = []


@dataclass(slots=True)
class Question:
    """One request and its right answer.

    Args:
        case: what it counts to.
        payload: HTTP: the request as it goes over the wire. SPOP: the messages of a NOTIFY; a run of sixteen
            `@` in it is replaced by a number that is new each time.
        right: the right answer.
        changes: nanoseconds of CLOCK_REALTIME at which `afterwards` becomes the right answer, e.g. because
            the token dies; 0: never. For a request under way at that moment either is right.
        afterwards: the right answer from then on.
        bodiless: the answer has no body whatever its head says (HEAD).
        endless: the answer is a stream that has no end: it is held, and judged by its begin.
    """

    case: Case
    payload: bytes
    right: Right
    changes: int = 0
    afterwards: Right | None = None
    bodiless: bool = False
    endless: bool = False
    known: set[bytes] = field(default_factory=set)
    """Answers that were found right before, for lanes that remember them."""
    around: tuple[bytes, bytes] | None = None
    """The payload before and after the place of a number."""

    def __post_init__(self) -> None:
        before, found, after = self.payload.partition(NUMBER)
        self.around = (before, after) if found else None

    def judge(self, status: int, text: bytes, sent: int, received: int) -> str:
        """Say what is wrong with an answer; "" if it is right.

        Args:
            status: see `Right`.
            text: the answer.
            sent: when the question was sent, nanoseconds of CLOCK_REALTIME.
            received: when the answer came.
        """
        if self.afterwards is None or received < self.changes:
            return self.right.wrong(status, text)
        if sent >= self.changes:
            return self.afterwards.wrong(status, text)
        before = self.right.wrong(status, text)
        return before and self.afterwards.wrong(status, text)

    def lost(self, sent: int, at: int, why: str) -> None:
        """It had no answer; sent and lost then. Does nothing by itself: the loop counts it."""


class Asked:
    """A question under way, and its moments in nanoseconds of CLOCK_REALTIME (see `loop`)."""

    __slots__ = ("again", "due", "lag", "noticed", "question", "received", "sent")

    def __init__(self, question: Question, due: int, sent: int = 0) -> None:
        self.question = question
        self.due = due
        """0: it is due when it is sent."""
        self.sent = sent
        self.lag = self.received = self.noticed = 0
        self.again = False
        """True if it was sent again (see `HttpClient`)."""

    def send(self, at: int, free_at: int) -> None:
        """It is sent now, on a client that became free then."""
        self.sent = at
        due = self.due
        if due:
            self.lag = at - (max(free_at, due))
        else:
            self.due = at


_PERIOD = 8192
"""Number of questions after which the order of a mix repeats."""


class QuestionMix:
    """Gives questions without an end, in an order that the seed fixes.

    Args:
        pools: weight and questions of each pool. A pool of weight 0 is left out.
        seed: of the order.
    """

    def __init__(self, pools: Sequence[tuple[float, Sequence[Question]]], *, seed: int = 1) -> None:
        chance = random.Random(seed)  # noqa: S311 - an order, not a secret
        able = [(weight, questions) for weight, questions in pools if weight > 0 and questions]
        if not able:
            raise ValueError("a mix needs a question of a weight above 0")
        length = 1 if len(able) == 1 and len(able[0][1]) == 1 else _PERIOD
        # Evenly: a question is asked again only when the others of its pool were.
        shuffled = [_shuffled(questions, chance) for _, questions in able]
        chosen = chance.choices(shuffled, [weight for weight, _ in able], k=length)
        self._order = [next(questions) for questions in chosen]
        self._fresh: deque[Question] = deque()
        self._every = 0

    def add_fresh(self, fresh: deque[Question], share: float) -> None:
        """Take a share of all questions out of `fresh`, each once, until it is empty."""
        self._fresh = fresh
        self._every = max(1, round(1 / share))

    def questions(self) -> Iterator[Question]:
        if not self._fresh:
            yield from itertools.cycle(self._order)
        for count, question in enumerate(itertools.cycle(self._order), 1):
            if count % self._every == 0 and self._fresh:
                yield self._fresh.popleft()
            else:
                yield question


def _shuffled(questions: Sequence[Question], chance: random.Random) -> Iterator[Question]:
    while True:
        yield from chance.sample(questions, len(questions))
