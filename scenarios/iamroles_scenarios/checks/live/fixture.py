"""The fixture of checks of live streams: streams that are open, and what must become of them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.polling import rest
from iamroles_scenarios.checks.live.stream import KINDS, ObservedStream, Stream, StreamShape
from iamroles_scenarios.declarations.scenario import WorldSpec
from iamroles_scenarios.engine.bench import EARLY, Bench, own_suffix
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.worlds import Loan
from iamroles_scenarios.stage.relay import Relay

LIFE = 4.0
"""Seconds, times the scale, of a credential whose end is waited for."""
_STRETCH, _LONGEST = 3.0, 27.0
"""How far lives are stretched, and their longest, seconds: HAProxy ends an idle upload after 30 s."""
OPEN = 3.0
"""Seconds, times the scale, in which a stream must begin."""
AFTER = 1.0
"""Seconds, times the scale, in which a stream must be over (9.2, 9.4). Benchmarks measure the spread."""
WITHIN = 5.0
"""Seconds, times the scale, for changes and answers for which SPEC.md names no time."""
_LAST = 0.1
"""Seconds, times the scale, that a stream's last byte may take from the proxy to the receiver's kernel."""
BACK = 15.0
"""Seconds, times the scale, in which HAProxy takes an agent back."""
EVERY = tuple(StreamShape(kind, busy) for kind in KINDS for busy in (True, False))
SOCKET, IDLE_SOCKET = StreamShape("websocket"), StreamShape("websocket", busy=False)
EVENTS, UPLOAD = StreamShape("events"), StreamShape("upload")
REPLY = StreamShape("reply")
DOWNLOAD, IDLE_DOWNLOAD = (StreamShape("download", busy) for busy in (True, False))
FEW = (SOCKET, IDLE_SOCKET, EVENTS)
HALF = tuple(StreamShape("websocket", busy, half=True) for busy in (True, False))
"""A proxy may end them when the client closes its side, so no check wants them to live."""
SHAPES = (*FEW, IDLE_DOWNLOAD, UPLOAD, *HALF)
USUAL = 600
"""Letters of a usual path."""
AUDIENCES = [*map(str, range(9)), "edge"]
"""Of a token for many, more than an agent may keep: a stream must not lose by that."""


class LiveBench(Bench):
    """A world with streams through its gate, all closed at the end."""

    def __init__(self, target: Target, loan: Loan) -> None:
        super().__init__(target, loan)
        self.streams = ExitStack()

    def close(self) -> None:
        self.streams.close()
        super().close()

    def open(
        self, shape: StreamShape, token: str, path: str = "/live/reader", preamble: bytes = b""
    ) -> Stream:
        """Open a stream, which must begin."""
        stream = self.begin(shape, token, path, preamble)
        self.must_begin(stream)
        return stream

    def begin(
        self, shape: StreamShape, token: str, path: str = "/live/reader", preamble: bytes = b""
    ) -> Stream:
        """Ask for a stream."""
        return self.streams.enter_context(closing(Stream(self, shape, path, token, preamble)))

    def open_all(self, shapes: Iterable[StreamShape], token: str, path: str = "/live/reader") -> list[Stream]:
        return [self.open(shape, token, path) for shape in shapes]

    def stretched(self, seconds: float) -> float:
        """Return the seconds that a stream may live, on a slow host more."""
        return min(self.target.seconds(seconds), seconds * _STRETCH, _LONGEST)

    def end(self, seconds: float = LIFE) -> int:
        """Return a token's `exp`: epoch seconds."""
        return math.ceil(time.time() + self.stretched(seconds))

    def open_short(self, shapes: Iterable[StreamShape], life: float = LIFE) -> list[Stream]:
        """Open a stream of each shape, whose credential soon ends."""
        return [self.open(shape, self.token(exp=self.end(life))) for shape in shapes]

    def two_people(self, shapes: Sequence[StreamShape]) -> tuple[list[Stream], list[Stream]]:
        """Open streams of a reader, alice, and of a writer, bob."""
        alice = self.token(exp="+15m", sub="alice", claims={"jti": "alice-1"})
        bob = self.token(exp="+15m", sub="bob", claims={"jti": "bob-1"}, roles=["writer"])
        return self.open_all(shapes, alice), self.open_all(shapes, bob, "/live/writer")

    def must_begin(self, stream: ObservedStream) -> None:
        if not stream.opened(self.seconds(OPEN)):
            self.in_time(stream.expires, f"the begin of {stream}")
            raise self.failed(f"{stream} did not begin: status {stream.status or 'none'}")

    def must_end_at(self, stream: ObservedStream, due: float, what: str, *, exact: bool = True) -> None:
        """Hold a stream to be over soon after a moment, and not before; if `exact`, no byte may pass then."""
        if not self._over(stream, due + self.seconds(AFTER)):
            raise self.failed(f"{stream}: still open {AFTER:g} s after {what}")
        if stream.ended < due - EARLY and not stream.shape.half:
            raise self.failed(f"{stream}: ended {due - stream.ended:.2f} s before {what}")
        if exact and stream.stamped and stream.last > due + self.seconds(_LAST):
            recording.timed()
            raise self.failed(f"{stream}: a byte came {stream.last - due:.2f} s after {what} (9.1)")

    def must_expire(self, streams: Iterable[ObservedStream], what: str = "its token's end") -> None:
        """Hold streams to be over soon after their tokens' ends, and not before."""
        for stream in streams:
            self.must_end_at(stream, stream.expires, what)

    def must_end(self, streams: Iterable[ObservedStream], what: str, within: float = AFTER) -> None:
        """Hold streams to be over within some seconds, times the scale, from now."""
        began = last = time.time()
        bound = self.seconds(within)
        for stream in streams:
            if not self._over(stream, began + bound):
                raise self.failed(f"{stream}: still open {within:g} s after {what}")
            last = max(last, stream.ended)
        recording.waited(what, last - began, bound)

    def _over(self, stream: ObservedStream, due: float) -> bool:
        """Return whether a stream was over by a moment, epoch seconds; its end must be seen in time."""
        if found := (stream.until(due) and stream.looked <= due + EARLY):
            # Not seen to be open then, so its reader may be late.
            self.in_time(due + 2 * EARLY, f"the end of {stream}", stream.ended)
        return found

    def must_last(self, streams: Iterable[ObservedStream], what: str, after: float = AFTER) -> None:
        """Hold streams to be open after something, and to move if they are busy.

        Args:
            streams: which.
            what: happened.
            after: seconds, times the scale, in which what cuts too much has had its time.
        """
        rest(self.stretched(after))
        for stream in (one for one in streams if not one.shape.half):
            if not stream.lives():
                raise self.failed(f"{stream}, still permitted, ended at {what}")
            if stream.shape.busy and not stream.moves(self.seconds(WITHIN)):
                raise self.failed(f"{stream}, still permitted, stands still after {what}")

    def take_grant(self, grant: str, going: Iterable[ObservedStream]) -> None:
        """Reload the world's policy without a grant, and hold the streams that it opened to end."""
        document = dict(self.loan.policy)
        document["grants"] = [one for one in document["grants"] if one["id"] != grant]
        self.reload(document)
        self.must_end(going, "the reload that took its grant away")

    def restart_agent(self) -> None:
        """Kill the agent, start it again, and wait until HAProxy has taken it back."""
        self.world.agent.kill()
        self.start_agent()

    def start_agent(self) -> None:
        self.world.agent.start()
        self.loan.wait_agents(self.seconds(BACK))


@contextmanager
def live_bench(
    target: Target,
    owner: str,
    policy: str = "live",
    *,
    own: bool = False,
    revoking: bool = False,
    mounted: bool = False,
    settings: dict[str, str] | None = None,
    relayed: bool = False,
    **override: Any,  # noqa: ANN401 - a policy's tables
) -> Iterator[LiveBench]:
    """Lend a world whose backends take streams.

    Args:
        target: agent and stage.
        owner: names an own world.
        policy: file name of the policy.
        own: whether the check disturbs its world.
        revoking: the world is its own, and has a file of revocations.
        mounted: a link leads to that file.
        settings: HAProxy's, by environment variable.
        relayed: a relay stands between HAProxy and the agent, in a world of its own.
        override: merged over the policy.
    """
    if revoking:
        override["live"] = {"revocations": "revocations.toml"}
    own = own or revoking
    spec = WorldSpec(policy=policy, override=override, own=own, settings=settings or {}, changes=own)
    with ExitStack() as stack:
        relays: list[Relay] = []

        def between(host: str, agent: str) -> str:
            relays.append(stack.enter_context(closing(Relay(host, agent))))
            return relays[0].address

        if relayed:
            loan = target.worlds.start(spec, own_suffix(), between=between, settings=settings)
            stack.enter_context(closing(loan))
        else:
            loan = stack.enter_context(target.worlds.borrow(spec, owner))
        here = stack.enter_context(closing(LiveBench(target, loan)))
        here.relay = relays[0] if relays else None
        if mounted:
            here.world.agent.mount("revocations.toml")
        if revoking:
            here.revoke()
        yield here
