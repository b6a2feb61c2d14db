"""Inputs of the fuzzer: mutations of valid frames by a seeded dice, and odd messages by hypothesis.

The same seed gives the same inputs. None holds a credential that any agent accepts, so an *allow* in answer
to one is a failure by itself.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

from iamroles_scenarios.wire import frames
from iamroles_scenarios.wire.client import context_arguments, question
from iamroles_scenarios.wire.codec import varint
from iamroles_scenarios.wire.frames import Flags, Frame, FrameType, encode_message, hello, prefixed

_ODD_BYTES = (0x00, 0x01, 0x07, 0x0F, 0x10, 0x11, 0x7F, 0x80, 0xEF, 0xF0, 0xF8, 0xFF)
ODD_IDS = (0, 1, 239, 240, 2287, 2288, 2**31 - 1, 2**32, 2**63, 2**64 - 1)
_ODD_LENGTHS = (0, 1, 6, 7, 255, 16380, 16381, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFF)
_GRAMMAR_SHARE = 4
"""One input of so many comes from the grammar."""
_BATCH = 2500
"""Inputs of the grammar drawn at once, which takes seconds."""


@dataclass(frozen=True, slots=True)
class Input:
    """One thing to send.

    Args:
        raw: bytes, length prefixes included.
        greeted: after the handshake; else in its place.
    """

    raw: bytes
    greeted: bool = True


def inputs(number: int, count: int) -> Iterator[Input]:
    """Return this many inputs for a seed; the first of each batch keeps its caller waiting."""
    dice = random.Random(number)  # noqa: S311 - a fuzzer's dice must be repeatable
    wanted = range(count // _GRAMMAR_SHARE + 1, 0, -_BATCH)
    batches = (_drawn(number + (part << 32), min(_BATCH, left)) for part, left in enumerate(wanted))
    grammar = chain.from_iterable(batches)
    for index in range(count):
        if index % _GRAMMAR_SHARE == 0:
            yield Input(next(grammar))
        else:
            yield mutation(dice)


def _drawn(number: int, count: int) -> list[bytes]:
    """Draw in another process: hypothesis computes, and would hold up the event loop of all checks."""
    text = f"""import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)
from iamroles_scenarios.wire.fuzz_grammar import from_grammar
print(*map(bytes.hex, from_grammar({number}, {count})))"""
    found = subprocess.run([sys.executable, "-P", "-c", text], stdout=subprocess.PIPE, check=True)  # noqa: S603
    return list(map(bytes.fromhex, found.stdout.decode().split()))


# --- mutations --------------------------------------------------------------------------------------------

_NO_CREDENTIAL = {"authorization": None, "path": "/", "src": "192.0.2.1"}
_BAD_CREDENTIAL = {"authorization": "Bearer e30.e30.AAAA", "path": "/", "src": "2001:db8::1"}
_SEEDS: tuple[bytes, ...] = (
    question(_NO_CREDENTIAL).body(),
    question(_BAD_CREDENTIAL).body(),
    question(_NO_CREDENTIAL, stream_id=2288, frame_id=240).body(),
    Frame(FrameType.NOTIFY, 1, 1, encode_message("iam-context", context_arguments())).body(),
    Frame(FrameType.NOTIFY, 1, 1, encode_message("other", {"a": -1, "b": "é", "c": None})).body(),
    Frame(FrameType.NOTIFY, 1, 1).body(),
    hello().body(),
    frames.disconnect().body(),
)


def mutation(dice: random.Random) -> Input:
    """A valid frame, damaged in one to four places; or noise."""
    if dice.random() < 0.08:
        noise = dice.randbytes(dice.randrange(1, 200))
        raw = noise if dice.random() < 0.5 else prefixed(noise)
        return Input(raw, greeted=dice.random() < 0.7)
    body = bytearray(dice.choice(_SEEDS))
    for _ in range(dice.choice((1, 1, 1, 2, 2, 3, 4))):
        dice.choice(_DAMAGE)(dice, body)
    raw = _with_length(dice, bytes(body))
    if dice.random() < 0.1:
        raw += _with_length(dice, dice.choice(_SEEDS))
    return Input(raw, greeted=dice.random() < 0.85)


def _with_length(dice: random.Random, body: bytes) -> bytes:
    lot = dice.random()
    if lot < 0.8:
        return prefixed(body)
    near = max(0, len(body) + dice.choice((-4, -2, -1, 1, 2, 4)))
    wrong = near if lot < 0.9 else dice.choice(_ODD_LENGTHS)
    return wrong.to_bytes(4, "big") + body


def _place(dice: random.Random, body: bytearray) -> int:
    return dice.randrange(len(body)) if body else 0


def _flip(dice: random.Random, body: bytearray) -> None:
    if body:
        body[_place(dice, body)] ^= 1 << dice.randrange(8)


def _odd_byte(dice: random.Random, body: bytearray) -> None:
    if body:
        body[_place(dice, body)] = dice.choice(_ODD_BYTES)


def _cut(dice: random.Random, body: bytearray) -> None:
    start = _place(dice, body)
    del body[start : start + dice.choice((1, 1, 2, 4, 8, 1000))]


def _insert(dice: random.Random, body: bytearray) -> None:
    start = _place(dice, body)
    body[start:start] = dice.choice(
        (dice.randbytes(dice.randrange(1, 9)), varint(dice.choice(ODD_IDS)), b"\xff" * 11, bytes(8))
    )


def _double(dice: random.Random, body: bytearray) -> None:
    start = _place(dice, body)
    piece = body[start : start + dice.randrange(1, 40)]
    body[start:start] = piece


def _head(dice: random.Random, body: bytearray) -> None:
    """Another type, other flags, other ids on the same payload."""
    kind = dice.choice((*FrameType, 4, 42, 255))
    flags = dice.choice((0, Flags.FIN, Flags.FIN | Flags.ABORT, Flags.ABORT, 0xFFFFFFFF, 0x80000001))
    ids = varint(dice.choice(ODD_IDS)) + varint(dice.choice(ODD_IDS))
    body[:7] = bytes([kind]) + int(flags).to_bytes(4, "big") + ids


def _splice(dice: random.Random, body: bytearray) -> None:
    other = dice.choice(_SEEDS)
    cut = _place(dice, body)
    body[cut:] = other[dice.randrange(len(other)) :]


def _argument_count(dice: random.Random, body: bytearray) -> None:
    where = body.find(b"iam-check")
    if where >= 0 and where + 9 < len(body):
        body[where + 9] = dice.choice((0, 1, 6, 8, 127, 255))


_DAMAGE: tuple[Callable[[random.Random, bytearray], None], ...] = (
    *(_flip, _flip, _odd_byte, _odd_byte, _cut, _insert, _double),
    *(_head, _splice, _argument_count),
)
