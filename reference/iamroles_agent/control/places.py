"""Where members live, what the shell has to do, deadlines: the words that `plane` and `loading` use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from iamroles_agent.control.channel import ChannelError, Message
from iamroles_agent.control.document import Document, Part

COURIER = -1
LOADER = -2
DETAIL = 2000
"""Characters of a refusal that each worker's audit gets; the whole is printed."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds."""

    ping: float = 0.25
    """Between two pings to a member."""
    silence: float = 1.0
    """A member that says nothing for longer is replaced."""
    late: float = 0.25
    """So much later than planned is normal for the parent; more is not counted against members."""
    birth: float = 60.0
    """From the fork until a member has built what is in force."""
    load: float = 60.0
    """For reading and checking a configuration."""
    stall: float = 3.0
    """In which whoever reads it must have run at all."""
    prepare: float = 5.0
    """For preparing a change of no size, and more for each MiB of it."""
    prepare_mib: float = 4.0
    switch: float = 2.0
    confirm: float = 3.0
    """How long the outcome waits for replacements and for the disk."""
    first_backoff: float = 0.1
    """Before a dead member is replaced; doubled each time, until one lives `healthy` seconds."""
    longest_backoff: float = 5.0
    healthy: float = 10.0


class Life(Enum):
    """Of the process in a place."""

    GONE = auto()
    BORN = auto()
    UP = auto()
    DYING = auto()


# Effects: what the shell has to do.


@dataclass(frozen=True, slots=True)
class Fork:
    """Make a member, then call `forked`."""

    place: int
    why: str
    """What became of the one before, "" for the first: the newborn puts it on record."""


@dataclass(frozen=True, slots=True)
class Kill:
    """End a member's process at once, then call `died`."""

    place: int
    why: str


@dataclass(frozen=True, slots=True)
class Send:
    """Put a message into a member's channel."""

    place: int
    message: Message


@dataclass(frozen=True, slots=True)
class Say:
    """Print a line of the launch contract."""

    line: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fail:
    """The agent could not start: end it, and say why."""

    why: str


Effect = Fork | Kill | Send | Say | Fail


@dataclass(slots=True)
class Place:
    """Where a member lives."""

    index: int
    life: Life = Life.GONE
    pid: int = 0
    version: int = 0
    """What it enforces."""
    holds: Document = field(default_factory=Document)
    """The document of that version."""
    prepared: int = 0
    """What it was last ready to enforce."""
    target: Document | None = None
    """What it is brought up to, because it was born before a commit; it does not serve until then."""
    serving: bool = False
    heard: float = 0.0
    """Fair time of its last word, or of its birth."""
    waited: float = 0.0
    """What `waits` said then."""
    spoken: bool = False
    born: float = 0.0
    """Fair time."""
    again: float = 0.0
    """Clock time of the next fork, while GONE."""
    backoff: float = 0.0
    fate: str = ""
    """Why it was killed, or what it ended of."""
    last: str = ""
    """The same, of the process before."""
    error: str = ""
    """What it said it failed of."""
    silent: bool = False
    """Whether its last process was killed for silence and it does not serve again yet."""
    deaths: int = 0
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As the log and the audit call it."""
        return "the courier" if self.index == COURIER else f"worker {self.index}"


def read_part(about: object, held: Iterable[bytes]) -> Part:
    """A part that a member describes, made of the pieces that it has sent.

    Raises:
        ChannelError: they do not fit.
    """
    if not isinstance(about, dict):
        raise ChannelError("a part that is no object")
    count, digest, stamp = about.get("pieces"), about.get("digest"), about.get("stamp", 0.0)
    if type(count) is not int or count < 0 or not isinstance(digest, str) or type(stamp) is not float:
        raise ChannelError("a part without pieces, digest or stamp")
    taken = iter(held)
    try:
        pieces = tuple([next(taken) for _ in range(count)])
    except StopIteration:
        raise ChannelError("a part whose pieces were not all sent") from None
    return Part.of(pieces, digest=digest, stamp=stamp)
