"""Ending streams in HAProxy: each is found by its number, and looked at right before it is shut down.

The short `show sess` gives pointers by address and costs little, so it comes first. It finds no client behind
the PROXY protocol, whose sender's address HAProxy prints, no request that waits, whose port no table has, and
it is slow for many streams of an HTTP/2 connection. For all these together a single `show sess all` follows,
which prints the number of each stream: 2.4 kB and some 40 microseconds a stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from iamroles_agent.live.console import Console, Stream, is_stream, numbered, parsed, pointers

_FEW = 4
"""Streams of an address that are looked at together, to find one of them."""
_AT_ONCE = 10
"""Streams that are looked at, then cut, by one exchange each: on a busy host an exchange takes some 20 ms."""
_AT_LEAST = 20
"""Streams that are ended before it asks whether to stop, so that every look gets on."""

Pointers = Callable[[Stream], Sequence[str]]


async def _by_address(console: Console) -> Pointers:
    found = await parsed(pointers, await console.read("show sess"))

    def where(stream: Stream) -> Sequence[str]:
        there = found.get(stream.source, ())
        return there if len(there) <= _FEW else ()

    return where


async def _by_number(console: Console) -> Pointers:
    found = await parsed(numbered, await console.read("show sess all"))
    return lambda stream: [found[stream.number]] if stream.number in found else []


async def shut(
    console: Console,
    wanted: list[Stream],
    ended: Callable[[Stream], None],
    stop: Callable[[], bool],
) -> list[Stream]:
    """End streams of a worker, in their order; return those that HAProxy does not show.

    Args:
        console: a connection to the worker.
        wanted: the streams.
        ended: called for each.
        stop: whether to leave the rest to the next look.
    """
    for find in (_by_address, _by_number):
        if all(stream.waits for stream in wanted) and (find is _by_address or not wanted):
            continue
        where, hidden = await find(console), []
        for start in range(0, len(wanted), _AT_ONCE):
            if start and start % _AT_LEAST == 0 and stop():
                return []
            some = wanted[start : start + _AT_ONCE]
            # Look and cut, nothing between: the pointer may belong to another stream a moment later.
            asked = [(stream, pointer) for stream in some for pointer in where(stream)]
            answers = await console.each([f"show sess {pointer}" for _, pointer in asked])
            seen = [pair for pair, answer in zip(asked, answers, strict=True) if is_stream(answer, pair[0])]
            await console.tell([f"shutdown session {pointer}" for _, pointer in seen])
            for stream, _ in seen:
                ended(stream)
            done = {stream.number for stream, _ in seen}
            hidden += [stream for stream in some if stream.number not in done]
        wanted = hidden
    return wanted


def in_turns(streams: Iterable[Stream]) -> list[Stream]:
    """Sort so that each principal's first stream comes before anybody's second."""
    seen: Counter[tuple[str, str]] = Counter()
    turns = []
    for stream in streams:
        ticket = stream.decoded()
        whose = ("", "") if ticket is None else (ticket.identity.issuer, ticket.identity.principal)
        seen[whose] += 1
        turns.append((seen[whose], stream))
    return [stream for _, stream in sorted(turns, key=lambda turn: turn[0])]
