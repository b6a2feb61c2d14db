"""The ledger: every answer of some traffic, and whether it was right when it came.

What is right changes while questions are under way, so no answer is judged when it comes. Each is kept with
two moments: when its question was sent, and the kernel's stamp on its last byte. Each expectation of a flow
is kept with the time in which it may hold: from the begin of the step that brought it, to the end of the step
that ended it, and for that step's `settles` after. An answer is right if it is as an expectation that may
hold at any moment between its two. So before and after a change one expectation is right, and while the
change happens either is.

A token's death is such a change as well: from its `exp` on, nothing is right but a refusal.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from iamroles_scenarios.declarations.scenario import Expectation, RequestSpec
from iamroles_scenarios.engine.http import Answer, redacted
from iamroles_scenarios.engine.observation import Observation, mismatches
from iamroles_scenarios.engine.players import observed
from iamroles_scenarios.traffic.polling import NANO
from iamroles_scenarios.traffic.questions import Question

NEVER = 1 << 62
_MARGIN = NANO // 20
"""Around a token's `exp`, for clocks that are read by other processes: HAProxy's own is that of its last
turn."""
DEAD = Expectation(status=401, allow=False, backend="")
"""The right answer to a token after its `exp`."""
DYING = Expectation(status=[401, 504], allow=False, backend="")
"""The end of a question that is under way when its token dies: HAProxy waits for the server until that very
moment (docs/live.md), so its timeout may come before the refusal."""


class Kind(StrEnum):
    """The verdict on an answer."""

    RIGHT = "right"
    FALSE_ALLOW = "false allow"
    """A backend was reached that should not have been. Nothing excuses it."""
    FALSE_DENY = "false deny"
    WRONG = "wrong"
    """Another refusal, another backend or another identity than the right one."""
    FAULT = "5xx"
    LOST = "lost"
    """No answer."""
    UNVERIFIED = "unverified"
    """All is right, but a backend cannot verify the signed identity."""


EXCUSABLE = frozenset({Kind.FALSE_DENY, Kind.FAULT, Kind.LOST, Kind.UNVERIFIED})


@dataclass(slots=True)
class _Held:
    expect: Expectation
    begin: int
    until: int = NEVER


class Flow:
    """A question that is asked again and again, with what is right for it, and when.

    Args:
        name: for windows and reports.
        request: the question.
        expect: what is right at the begin.
        weight: its share of the traffic.
    """

    def __init__(self, name: str, request: RequestSpec, expect: Expectation, *, weight: float = 1.0) -> None:
        self.name = name
        self.request = request
        self.weight = weight
        self._held = [_Held(expect, 0)]

    def change(self, expect: Expectation, begin: int, settled: int) -> None:
        """Change what is right: from `begin` at the earliest, alone from `settled` on (nanoseconds)."""
        self._held[-1].until = settled
        self._held.append(_Held(expect, begin))

    def right(self, sent: int, received: int, dies: int) -> list[Expectation]:
        """Return the right answers to a question of these moments, with a token that dies then."""
        if sent >= dies + _MARGIN:
            return [DEAD]
        found = [one.expect for one in self._held if one.begin <= received and sent <= one.until]
        return found if received < dies - _MARGIN else [*found, DYING]


@dataclass(slots=True, kw_only=True)
class FlowQuestion(Question):
    """A question whose answers go to a ledger, unjudged."""

    flow: Flow
    ledger: Ledger
    secret: str = ""
    dies: int = NEVER
    """When its token dies, nanoseconds of CLOCK_REALTIME."""

    def judge(self, status: int, text: bytes, sent: int, received: int) -> str:
        self.ledger.add(Entry(self, sent, received, status, text))
        return ""

    def lost(self, sent: int, at: int, why: str) -> None:
        self.ledger.add(Entry(self, sent, at, 0, why.encode()))


class Entry(NamedTuple):
    """An answer, or the reason why there was none."""

    question: FlowQuestion
    sent: int
    received: int
    status: int
    """0: no answer came."""
    text: bytes
    """The answer as it came, or why there was none."""

    @property
    def seen(self) -> Observation:
        head, _, body = self.text.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        pairs = tuple(
            (name.lower(), value.strip()) for name, _, value in (field.partition(":") for field in fields)
        )
        reason = line.split(" ", 2)[-1]
        answer = Answer(self.status, reason, pairs, body, 0, self.received / NANO)
        return observed(answer, self.question.payload, [self.question.secret])

    @property
    def right(self) -> list[Expectation]:
        """The answers that would be right."""
        return self.question.flow.right(self.sent, self.received, self.question.dies)

    @property
    def shown(self) -> tuple[str, str]:
        """The question and the answer for a reader, without the token."""
        if self.status:
            seen = self.seen
            return seen.sent, seen.received
        sent = redacted(self.question.payload.decode("latin-1").replace("\r\n", "\n"), [self.question.secret])
        return sent.strip(), f"no answer: {self.text.decode(errors='replace')}"

    def judged(self) -> tuple[Kind, str]:
        """Return what kind of answer it was, and what was wrong with it."""
        if not self.status:
            return Kind.LOST, self.text.decode(errors="replace")
        seen = self.seen
        right = self.right
        differing = [mismatches(one, seen, {}) for one in right]
        if not all(differing):
            why = self.question.ledger.verify(self)
            return (Kind.UNVERIFIED if why else Kind.RIGHT), why
        why = " / ".join("; ".join(each) for each in differing)
        opens = any(one.allow or one.status == 200 for one in right)
        if seen.allow:
            return (Kind.WRONG if opens else Kind.FALSE_ALLOW), why
        if self.status >= 500:
            return Kind.FAULT, why
        return (Kind.FALSE_DENY if opens else Kind.WRONG), why


class Ledger:
    """Answers in the order in which they came. Added to by one thread, read by others."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._lock = threading.Lock()
        self.count = 0
        self.verify: Callable[[Entry], str] = lambda _: ""
        """Why no backend takes the signed identity of an answer that is right otherwise; "": it does."""

    def add(self, entry: Entry) -> None:
        with self._lock:
            self._entries.append(entry)
            self.count += 1

    def between(self, begin: int, end: int, flows: Sequence[str] = ()) -> list[Entry]:
        """Return the answers to what was sent in [begin, end), of these flows or of all."""
        return [
            entry
            for entry in list(self._entries)
            if begin <= entry.sent < end and (not flows or entry.question.flow.name in flows)
        ]

    def take(self, before: int) -> list[Entry]:
        """Return and forget the answers to what was sent before a moment, because a long run has too many."""
        with self._lock:
            taken = [entry for entry in self._entries if entry.sent < before]
            self._entries = [entry for entry in self._entries if entry.sent >= before]
        return taken


@dataclass(slots=True)
class Finding:
    """The judged answers of a window."""

    between: tuple[str, str]
    answers: int
    bad: list[tuple[Entry, Kind, str]] = field(default_factory=list)
    """Answers that were not right and that nothing excuses, with why."""
    excused: Counter[Kind] = field(default_factory=Counter)
    recovered: float = 0.0
    """Seconds from a step's begin until the last wrong answer before the next step, excused ones
    included; the longest of all steps."""
    p99: float = 0.0
    """Seconds."""
    quiet: float = 0.0
    """The quiet time's 99th percentile, seconds; 0 where it is not compared."""
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{' to '.join(self.between)}: {self.answers} answers"]
        parts += [f"{count} {kind}" for kind, count in Counter(kind for _, kind, _ in self.bad).items()]
        parts += [f"{count} {kind} excused" for kind, count in self.excused.items()]
        if self.recovered:
            parts.append(f"right again after {self.recovered:.2f} s")
        parts.append(
            f"p99 {self.p99 * 1000:.1f} ms" + (f", quiet {self.quiet * 1000:.1f} ms" if self.quiet else "")
        )
        return ", ".join(parts)


def p99(entries: Iterable[Entry]) -> float:
    """Return the 99th percentile of the time from sent to received, seconds; 0 without entries."""
    times = sorted(entry.received - entry.sent for entry in entries if entry.status)
    return times[min(len(times) - 1, len(times) * 99 // 100)] / NANO if times else 0.0


SHOWN = 10
"""Wrong answers that are kept whole, at most."""


@dataclass(slots=True)
class Second:
    """The figures of a second of a long run."""

    answers: int
    bad: int
    p50: float
    """Seconds, as `p99`."""
    p99: float


class Outcomes:
    """The answers of long traffic: judged piece by piece, counted, then forgotten.

    Args:
        ledger: where the answers are.
        begin: of the traffic, nanoseconds of CLOCK_REALTIME.
    """

    def __init__(self, ledger: Ledger, begin: int) -> None:
        self._ledger = ledger
        self._begin = begin
        self.answers = 0
        self.excused: Counter[Kind] = Counter()
        self.bad: Counter[Kind] = Counter()
        self.held: Counter[Kind] = Counter()
        """Answers that would be bad if the host had not been late for them."""
        self.examples: list[tuple[float, Entry, Kind, str]] = []
        """Seconds from the begin, and what was not right then."""
        self.seconds: dict[int, Second] = {}
        """By whole seconds from the begin."""
        self.excuses: list[tuple[int, int]] = []
        """Times of faults, nanoseconds: 5xx, missing answers and false denies in them are excused."""
        self.late: list[float] = []
        """Seconds from the begin at which answers came that were not right, excused ones included."""

    def judge(self, before: int) -> None:
        """Judge what was sent before a moment; every change that bears on them must be known."""
        pieces: dict[int, list[Entry]] = {}
        for entry in self._ledger.take(before):
            pieces.setdefault((entry.sent - self._begin) // NANO, []).append(entry)
        for second, entries in sorted(pieces.items()):
            bad = sum(not self._right(entry) for entry in entries)
            times = sorted(entry.received - entry.sent for entry in entries if entry.status) or [0]
            found = Second(len(entries), bad, times[len(times) // 2] / NANO, p99(entries))
            if (known := self.seconds.get(second)) is not None:  # a second in two pieces
                found.answers, found.bad = found.answers + known.answers, found.bad + known.bad
                found.p50, found.p99 = max(found.p50, known.p50), max(found.p99, known.p99)
            self.seconds[second] = found
            self.answers += len(entries)

    def _right(self, entry: Entry) -> bool:
        kind, why = entry.judged()
        if kind is Kind.RIGHT:
            return True
        self.late.append((entry.received - self._begin) / NANO)
        if kind in EXCUSABLE and any(entry.received >= a and entry.sent <= b for a, b in self.excuses):
            self.excused[kind] += 1
            return True
        self.bad[kind] += 1
        if len(self.examples) < SHOWN:
            self.examples.append(((entry.sent - self._begin) / NANO, entry, kind, why))
        return False

    def __str__(self) -> str:
        parts = [f"{self.answers} answers", *(f"{count} {kind}" for kind, count in self.bad.items())]
        return ", ".join(parts + [f"{count} {kind} excused" for kind, count in self.excused.items()])
