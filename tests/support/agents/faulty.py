"""An agent of which only the set-up is at fault; its first argument says how.

    python faulty.py FAULT [STATE]

With STATE, a file that remembers, it is sound the first time and at fault from then on.
"""

import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path

from blunt import Handler
from puppet import main as serve
from puppet import say


def ready(address):
    say(sys.stdout, {"ready": True, "address": address})


class Mortal(Handler):
    """Refuses everybody, until it is asked something: that is its end."""

    def answer(self, frame):
        sys.stderr.write("out of luck\n")
        sys.stderr.flush()
        os._exit(9)


class Assassin(Handler):
    """Refuses everybody, as it must, and ends every HAProxy of its parent at the first question."""

    def answer(self, frame):
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, IndexError):
                name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
                if name == "haproxy" and int(rest.split()[1]) == os.getppid():
                    os.kill(int(entry.name), signal.SIGKILL)
        super().answer(frame)


def main(fault, state):
    if state is not None:
        first = not state.exists()
        state.touch()
        if first:
            serve(Handler)
    match fault:
        case "refuses":
            sys.exit("policy: keys.timeout: unknown key")
        case "nobody-listens":
            with socket.create_server(("127.0.0.1", 0)) as once:
                address = f"127.0.0.1:{once.getsockname()[1]}"
            ready(address)
            sys.stdin.read()
        case "no-address":
            ready("here")
            sys.stdin.read()
        case "no-line":
            say(sys.stdout, {"ready": True})
            sys.stdin.read()
        case "dies":
            with socket.create_server(("127.0.0.1", 0)) as server:
                ready(f"127.0.0.1:{server.getsockname()[1]}")
                for _ in range(3):  # the judge's first looks, then its first check
                    server.accept()[0].close()
            time.sleep(0.3)  # its end takes a while, as on a busy host: the log is read after it
            sys.stderr.write("out of luck\n")
            sys.exit(9)
        case "kills-the-proxy":
            serve(Assassin)
        case "dies-of-a-question":
            serve(Mortal)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None)
