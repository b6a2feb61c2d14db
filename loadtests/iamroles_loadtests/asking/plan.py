"""What a generator is told: piles of questions once, then one phase after the other. JSON in both directions.

A phase is a stretch of load with one shape. Its result holds histograms, so that results of several
generators that shared a phase add up to one (`book.Book`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from iamroles_scenarios.declarations.documents import Model
from iamroles_scenarios.traffic import Case, Question, Right, Segment


class Expected(Model):
    """The right answer (`traffic.Right`); bytes as Latin-1 text."""

    status: int = 200
    holds: list[str] = Field(default_factory=list)
    lacks: list[str] = Field(default_factory=list)
    told: str = ""

    def right(self) -> Right:
        return Right(
            self.status,
            tuple(piece.encode("latin-1") for piece in self.holds),
            tuple(piece.encode("latin-1") for piece in self.lacks),
            self.told.encode("latin-1"),
        )


class Ask(Model):
    """One question (`traffic.Question`); bytes as Latin-1 text."""

    case: str
    payload: str
    right: Expected = Expected()
    changes: int = 0
    afterwards: Expected | None = None
    bodiless: bool = False
    endless: bool = False

    def question(self, cases: dict[str, Case]) -> Question:
        """As the loop wants it; cases are numbered as they come."""
        case = cases.setdefault(self.case, Case(self.case, len(cases)))
        return Question(
            case,
            self.payload.encode("latin-1"),
            self.right.right(),
            self.changes,
            None if self.afterwards is None else self.afterwards.right(),
            self.bodiless,
            self.endless,
        )


class Piles(Model):
    """Questions by the name of their pile."""

    piles: dict[str, list[Ask]]


class Stretch(Model):
    """A segment of the timetable (`traffic.Segment`)."""

    seconds: float = Field(gt=0)
    rate: float = Field(gt=0)
    until: float | None = Field(default=None, gt=0)

    def segment(self) -> Segment:
        return Segment(self.seconds, self.rate, self.until)


class Phase(Model):
    """One stretch of load."""

    name: str
    address: str
    """`host:port` or `unix:/path`."""
    lane: Literal["http", "spop"] = "http"
    hands: dict[str, float]
    """Weight by pile."""
    once: str = ""
    """A pile whose questions are asked once each."""
    once_share: float = Field(default=0.01, gt=0, le=1)
    connections: int = Field(default=64, ge=1, le=20_000)
    in_flight: int = Field(default=1, ge=1, le=1024)
    """Questions under way on one SPOP connection."""
    tls: bool = False
    fresh: bool = False
    """A new connection for each request."""
    streams: int = Field(default=0, ge=0, le=20_000)
    """Streams of the pile `stream` that are open all the while."""
    timetable: list[Stretch] = Field(default_factory=list)
    """Empty: a closed loop of `seconds`."""
    seconds: float = Field(default=0.0, ge=0)
    constant: bool = False
    """Even gaps between requests, not those of a Poisson process."""
    warmup: float = Field(default=0.0, ge=0)
    """Seconds before, at the first rate, whose samples do not count and whose verdicts do."""
    patience: float = Field(default=5.0, gt=0)
    seed: int = 1
    part: int = 0
    parts: int = Field(default=1, ge=1)

    @property
    def closed(self) -> bool:
        """Whether each connection waits for its answer before it asks again."""
        return not self.timetable

    @property
    def length(self) -> float:
        return sum(stretch.seconds for stretch in self.timetable) or self.seconds

    def shared(self, part: int, parts: int) -> Phase:
        """The part of one of several generators: its arrivals and its connections."""
        own = self.connections // parts + (part < self.connections % parts)
        held = self.streams // parts + (part < self.streams % parts)
        return self.model_copy(
            update={"part": part, "parts": parts, "connections": max(1, own), "streams": held}
        )
