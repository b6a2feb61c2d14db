"""Plans for generators: pools of questions, and phases, each a stretch of load with one shape."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from iamroles_scenarios.declarations.documents import Model
from iamroles_scenarios.traffic import Case, Question, Right, Segment


class Ask(Model):
    """One question (`traffic.Question`), as it is written into a plan."""

    case: str
    payload: str
    """Bytes as Latin-1 text."""
    right: Right = Right()
    changes: int = 0
    afterwards: Right | None = None
    bodiless: bool = False
    endless: bool = False

    def question(self, cases: dict[str, Case]) -> Question:
        """Make the question that the loop asks; new cases are numbered in their order."""
        case = cases.setdefault(self.case, Case(self.case, len(cases)))
        payload = self.payload.encode("latin-1")
        return Question(case, payload, self.right, self.changes, self.afterwards, self.bodiless, self.endless)


Pools = dict[str, list[Ask]]
"""Questions by the name of their pool."""


class Phase(Model):
    """One stretch of load."""

    name: str
    address: str
    """`host:port` or `unix:/path`."""
    protocol: Literal["http", "spop"] = "http"
    weights: dict[str, float]
    """Weight of each pool."""
    once: str = ""
    """A pool whose questions are asked once each."""
    once_share: float = Field(default=0.01, gt=0, le=1)
    connections: int = Field(default=64, ge=1, le=20_000)
    in_flight: int = Field(default=1, ge=1, le=1024)
    """Questions under way on one SPOP connection."""
    tls: bool = False
    fresh: bool = False
    """A new connection for each request."""
    streams: int = Field(default=0, ge=0, le=20_000)
    """Streams of the pool `stream` that stay open during the phase."""
    timetable: list[Segment] = Field(default_factory=list)
    """Empty: a closed loop of `seconds`."""
    seconds: float = Field(default=0.0, ge=0)
    constant: bool = False
    """Even gaps between requests, not those of a Poisson process."""
    warmup: float = Field(default=0.0, ge=0)
    """Seconds before, at the first rate, whose samples do not count and whose verdicts do."""
    patience: float = Field(default=5.0, gt=0)
    seed: int = 1

    @property
    def closed(self) -> bool:
        """Each connection waits for its answer before it asks again."""
        return not self.timetable

    @property
    def length(self) -> float:
        return sum(segment.seconds for segment in self.timetable) or self.seconds

    @property
    def rate(self) -> float:
        """Requests a second that are due on average; 0 for a closed loop."""
        return sum(segment.total for segment in self.timetable) / self.length if self.timetable else 0.0


class Plan(Model):
    """The plan for the processes of locust: JSON in a file and in locust's messages."""

    pools: Pools
    phase: Phase
