"""An agent that gives everybody the same answer: what a broken vendor agent looks like to the suite.

    python blunt.py allow|deny|silent|garbage

It follows SPEC.md section 8, so the stage starts it as it would any other.
"""

import json
import os
import socketserver
import sys
from pathlib import Path

from iamroles_scenarios.wire.codec import Typed, string
from iamroles_scenarios.wire.frames import Frame, FrameType, Scope, as_hello, encode_kv

ANSWERS = {
    "allow": {"status": 200, "backend": "orders-ro", "rule": "R1", "allow": True},
    "deny": {"status": 401, "reason": "no_credentials", "allow": False},
}


def set_var(name, value):
    return bytes([1, 3, Scope.txn]) + string(name) + Typed.of(value).encode()


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        while len(head := self.rfile.read(4)) == 4:
            frame = Frame.decode(self.rfile.read(int.from_bytes(head, "big")))
            if frame.type == FrameType.HAPROXY_HELLO:
                hello = {"version": "2.0", "max-frame-size": 16380, "capabilities": "pipelining"}
                answer = Frame(FrameType.AGENT_HELLO, payload=encode_kv(as_hello(hello)))
            elif sys.argv[1] == "silent":
                continue
            else:
                payload = b"".join(set_var(*item) for item in ANSWERS.get(sys.argv[1], {}).items())
                if sys.argv[1] == "garbage":
                    payload = bytes([1, 3, 9])
                answer = Frame(
                    FrameType.ACK, stream_id=frame.stream_id, frame_id=frame.frame_id, payload=payload
                )
            self.wfile.write(answer.encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    listen = json.loads(Path(os.environ["IAMROLES_WORLD"]).read_text(encoding="utf-8"))["agent"]["listen"]
    host, _, port = listen.rpartition(":")
    with Server((host, int(port)), Handler) as server:
        ready = {"ready": True, "address": f"{host}:{server.server_address[1]}"}
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        server.serve_forever()
