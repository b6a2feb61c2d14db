"""The demo's second act: open streams end with their credential, and with a revocation.

The streams are real, so the act takes as long as their tokens live. What a viewer sees is the clock: whether
something passes, how much is left, and at which moment HAProxy closed the connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from rich.console import Console
from rich.text import Text

from iamroles_scenarios.checks.live.fixture import LiveBench, live_bench
from iamroles_scenarios.checks.live.stream import Kind, Stream, StreamShape
from iamroles_scenarios.engine.target import Target

STREAMS = 3
"""Steps of the second act."""
LIFE = 4.0
"""Seconds that a temporary token lives."""
AFTER = 1.0
"""Seconds in which a stream must be closed once its time is over."""
_SHOWN = 0.5
_WHAT: dict[Kind, str] = {"websocket": "frames go and come", "events": "words arrive"}


def heading(console: Console, number: int, title: str, why: str) -> None:
    """A step's number, title, and why it goes as it does."""
    console.print()
    console.print(Text.assemble((f"{number:>2} ", "bold cyan"), (title, "bold")))
    console.print(Text(f"   {why}", "italic"), soft_wrap=True)


class SecondAct:
    """Plays and tells it.

    Args:
        console: where to.
        pause: called before each step.
        number: of the last step that was shown.
    """

    def __init__(self, console: Console, pause: Callable[[], None], number: int) -> None:
        self._console, self._pause = console, pause
        self.number = number
        self.good = 0
        """Steps that went as expected."""

    def play(self, target: Target) -> None:
        """All steps.

        Raises:
            SuiteError: a part of the stage failed.
        """
        with live_bench(target, "demo.streams", "chat", revoking=True) as here:
            self._dies(
                here,
                "websocket",
                "A WebSocket dies on the second",
                f"bob's token lives for {LIFE:g} s. The socket is never silent, so no timeout would end it.",
                lambda: here.token(sub="bob", roles=["support"], exp=f"+{LIFE:g}s"),
            )
            with self._stream(
                here, "websocket", here.token(sub="alice", roles=["support"], exp="+15m")
            ) as other:
                self._dies(
                    here,
                    "events",
                    "An AI agent's chat stream ends when its temporary role does",
                    f"agent-7 took the role ai-agent for {LIFE:g} s, and the model talks on. "
                    "alice's socket is open too.",
                    lambda: here.token(sub="agent-7", roles=["ai-agent"], exp=f"+{LIFE:g}s"),
                )
                self._revoked(here, other)

    def _dies(self, here: LiveBench, kind: Kind, title: str, why: str, token: Callable[[], str]) -> None:
        self._begins(title, why)  # it may pause: the token is minted after it
        with self._stream(here, kind, token()) as stream:
            while (left := stream.expires - time.time()) > _SHOWN:
                if not stream.moves(AFTER):
                    self._differs(f"nothing passes, with {left:.1f} s left")
                    return
                self._at(time.time(), f"{_WHAT[kind]}, {left:.1f} s are left")
                stream.until(time.time() + _SHOWN)
            stream.until(stream.expires + AFTER)
            self._ends(stream, stream.expires, "the token's end")

    def _revoked(self, here: LiveBench, stream: Stream) -> None:
        self._begins(
            "A revocation ends a stream before its time",
            "alice's laptop is stolen. Her token has a quarter of an hour left, and her socket is open.",
        )
        if not stream.moves(AFTER):
            self._differs("alice's socket is closed, though her token lasts and nobody revoked it")
            return
        gets = '   * the file of revocations gets: principals = ["alice"]'
        self._console.print(Text(gets, "yellow"), soft_wrap=True)
        due = time.time()
        here.revoke(principals=["alice"], reason="stolen")
        stream.until(due + 5 * AFTER)
        self._ends(stream, due, "the revocation", within=5 * AFTER)

    def _begins(self, title: str, why: str) -> None:
        self._pause()
        self.number += 1
        heading(self._console, self.number, title, why)

    @contextmanager
    def _stream(self, here: LiveBench, kind: Kind, token: str) -> Iterator[Stream]:
        with closing(Stream(here, StreamShape(kind), "/chat", token)) as stream:
            here.must_begin(stream)
            yield stream

    def _ends(self, stream: Stream, due: float, what: str, within: float = AFTER) -> None:
        if stream.lives():
            self._differs(f"still open {within:g} s after {what}")
        elif stream.ended < due - AFTER / 10:
            self._differs(f"closed {due - stream.ended:.2f} s before {what}")
        else:
            self.good += 1
            late = f"{abs(stream.ended - due):.2f} s {'after' if stream.ended >= due else 'before'} {what}"
            self._at(stream.ended, f"closed by HAProxy, {late}", "bold red")

    def _at(self, moment: float, text: str, style: str = "") -> None:
        clock = time.strftime("%H:%M:%S", time.localtime(moment))
        shown = f"   {clock}.{int(moment % 1 * 100):02d}  "
        self._console.print(Text.assemble((shown, "dim"), (text, style)), soft_wrap=True)

    def _differs(self, how: str) -> None:
        self._console.print(Text.assemble(("   NOT AS TOLD ", "bold red"), how))
