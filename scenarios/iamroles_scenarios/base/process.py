"""The common part of the mock processes: arguments, the ready line, and the two ways to end.

A mock ends on SIGTERM or SIGINT; with `--exit-with-parent` also when its standard input closes, so that a
suite killed with -9 leaves nothing running.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import uvloop


@dataclass(frozen=True)
class MockOptions:
    """The address at which a mock serves."""

    host: str
    port: int
    public_url: str | None
    """How others reach it, without a trailing slash; None: by the address it listens on."""
    exit_with_parent: bool


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """Arguments all mocks have."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument(
        "--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="port 0: an ephemeral one"
    )
    parser.add_argument("--public-url", metavar="URL", help="how others reach it (default: the address)")
    parser.add_argument("--exit-with-parent", action="store_true", help="end when standard input closes")
    parser.add_argument("--verbose", action="store_true", help="log each request to standard error")
    return parser


def options(arguments: argparse.Namespace) -> MockOptions:
    """Read the common arguments and set up logging to standard error.

    Raises:
        SystemExit: status 2, with the remedy, for a bad `--listen`.
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if arguments.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    for chatty in ("asyncio", "botocore", "urllib3", "werkzeug"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    host, _, port = arguments.listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        sys.stderr.write(f"--listen {arguments.listen!r} is not host:port. Say for example 127.0.0.1:0\n")
        raise SystemExit(2)
    public = arguments.public_url.rstrip("/") if arguments.public_url else None
    return MockOptions(host.strip("[]"), int(port), public, arguments.exit_with_parent)


def joined(host: str, port: int) -> str:
    """`host:port`, brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a mock on uvloop; an address that it cannot have is one sentence and status 3."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main)
    except OSError as fault:
        remedy = ". Free the address, or use port 0" if fault.errno == errno.EADDRINUSE else ""
        sys.stderr.write(f"cannot serve: {fault}{remedy}\n")
        raise SystemExit(3) from fault


async def until_stopped(options: MockOptions, **ready: object) -> None:
    """Print the ready line `{"ready": true, ...}` and return on SIGTERM or SIGINT.

    With `exit_with_parent` it returns also when standard input closes. The handlers stand before the line is
    out: its reader may already send the signal.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if options.exit_with_parent:
        # A thread, not a pipe transport: standard input may be a file or /dev/null, which no selector takes.
        threading.Thread(target=_watch_stdin, args=(loop, stop), daemon=True).start()
    sys.stdout.write(json.dumps({"ready": True, **ready}) + "\n")
    sys.stdout.flush()
    await stop.wait()


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        pass
    if not loop.is_closed():
        loop.call_soon_threadsafe(stop.set)
