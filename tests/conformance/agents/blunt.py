"""An agent that gives everybody the same answer: what a broken vendor agent looks like to the suite.

    python blunt.py allow|deny|silent|garbage

It follows SPEC.md section 8, so the stage starts it as it would any other.
"""

import json
import os
import signal
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
    says = "deny"

    def handle(self):
        while len(head := self.rfile.read(4)) == 4:
            frame = Frame.decode(self.rfile.read(int.from_bytes(head, "big")))
            if frame.type == FrameType.HAPROXY_HELLO:
                hello = {"version": "2.0", "max-frame-size": 16380, "capabilities": "pipelining"}
                self.say(Frame(FrameType.AGENT_HELLO, payload=encode_kv(as_hello(hello))))
            elif self.says != "silent":
                self.ask(frame)

    def ask(self, frame):
        payload = b"".join(set_var(*item) for item in ANSWERS.get(self.says, {}).items())
        if self.says == "garbage":
            payload = bytes([1, 3, 9])
        self.say(Frame(FrameType.ACK, stream_id=frame.stream_id, frame_id=frame.frame_id, payload=payload))

    def say(self, frame):
        self.wfile.write(frame.encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def say(line):
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def serve(handler):
    signal.signal(signal.SIGHUP, lambda *_: say({"reloaded": True}))
    listen = json.loads(Path(os.environ["IAMROLES_POLICY"]).read_text(encoding="utf-8"))["agent"]["listen"]
    host, _, port = listen.rpartition(":")
    with Server((host, int(port)), handler) as server:
        say({"ready": True, "address": f"{host}:{server.server_address[1]}"})
        server.serve_forever()


if __name__ == "__main__":
    Handler.says = sys.argv[1]
    serve(Handler)
