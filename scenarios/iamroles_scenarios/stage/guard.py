"""The guard: a process that clears up after a stage whose own process died.

A finally clause does not run after SIGKILL. So each stage starts this script, with one pipe as its standard
input, and tells it what exists: ``+pgid`` and ``-pgid`` for process groups, ``dir path`` for directories,
``docker label`` for containers and networks (``docker`` alone: no longer). When the pipe closes, however the
stage ended, the guard kills and removes whatever was not struck off. (PR_SET_PDEATHSIG would be simpler and
wrong: it fires when the *thread* that started a child ends.)

Run by path with ``-I``: it needs the standard library alone, and docker's client only for containers.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Guard:
    """The stage's end of the pipe. Thread-safe: each note is one short write."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - this very file
            [sys.executable, "-I", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal must not reach it
        )

    def start(self, popen: Callable[..., Any], *arguments: Any, **more: Any) -> Any:  # noqa: ANN401 - what `popen` gives
        """Start what leads its group, and note it: an interrupt between the two would leave it running."""
        with _uninterrupted():
            process = popen(*arguments, **more)
            self.note(f"+{process.pid}")
        return process

    def note(self, line: str) -> None:
        """Tell the guard what to clear up, or no longer."""
        assert self._process.stdin is not None  # noqa: S101 - asked for above
        with suppress(BrokenPipeError):
            os.write(self._process.stdin.fileno(), line.encode() + b"\n")

    def close(self) -> None:
        """Let the guard clear up what is left, and wait for it; a guard that takes long goes on by itself."""
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(30)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Handlers of Ctrl-C and SIGTERM are called after this, not in it."""
    came: list[tuple[Any, ...]] = []
    former: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(handler := signal.getsignal(number)):
                    former[number] = handler
                    signal.signal(number, lambda *arguments: came.append(arguments))
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        for arguments in came:
            former[arguments[0]](*arguments)


def watch(lines: Iterable[str]) -> None:
    """Follow the notes to their end, then clear up."""
    groups: set[int] = set()
    directories: list[str] = []
    label = ""
    for note in map(str.strip, lines):
        if note.startswith("+"):
            groups.add(int(note[1:]))
        elif note.startswith("-"):
            groups.discard(int(note[1:]))
        elif note.startswith("dir "):
            directories.append(note[4:])
        elif note.startswith("docker"):
            label = note[6:].strip()
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)
    if label:
        remove_labelled(label)


def remove_labelled(label: str) -> None:
    """Remove the containers and networks that carry a label (`key` or `key=value`)."""
    import docker  # noqa: PLC0415 - only the containers stage has it, and it is slow to import
    from docker.errors import DockerException  # noqa: PLC0415

    with suppress(DockerException):
        client = docker.from_env()
        for container in client.containers.list(all=True, filters={"label": label}):
            with suppress(DockerException):
                container.remove(force=True, v=True)
        for network in client.networks.list(filters={"label": label}):
            with suppress(DockerException):
                network.remove()
        client.close()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    watch(sys.stdin)
