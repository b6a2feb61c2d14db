"""An agent of which only the set-up is at fault; its first argument says how."""

from __future__ import annotations

import json
import socket
import sys


def ready(address: str) -> None:
    """Print the ready line."""
    sys.stdout.write(json.dumps({"ready": True, "address": address}) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Be at fault."""
    match sys.argv[1]:
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
        case "dies":
            with socket.create_server(("127.0.0.1", 0)) as server:
                ready(f"127.0.0.1:{server.getsockname()[1]}")
                for _ in range(2):  # the judge's first look, then its first check
                    server.accept()[0].close()
            sys.stderr.write("out of luck\n")
            sys.exit(9)


main()
