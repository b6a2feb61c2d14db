"""A puppet agent for tests of the stage and of HAProxy's configuration: the request says the answer.

`Authorization: Puppet {"allow": true, "status": 200, …}` sets these variables, the verdict last; so does any
other scheme with an object. Tricks:
`{"_silent": true}` gives no ACK, `{"_garbage": "<hex>"}` gives these bytes instead, `{"_close": true}` ends
the connection, `{"_lost": "goodbye"}` does so once, after a DISCONNECT (`"close"`: without one), and answers
when it is asked the same again, `{"_broken": true}` puts an action that cannot be decoded before the verdict.
What it was asked goes to standard error as JSON. It follows SPEC.md section 8.
"""

import json
import os
import select
import signal
import socket
import socketserver
import sys
import threading
from pathlib import Path

from iamroles_scenarios.wire import frames
from iamroles_scenarios.wire.codec import string
from iamroles_scenarios.wire.frames import Frame, FrameType, Scope, Typed, as_hello, encode_kv

GOODBYE = encode_kv(as_hello({"status-code": 0, "message": "goodbye"}))
LOST = set()
WORLD = Path(os.environ["IAMROLES_POLICY"])


def say(stream, line):
    stream.write(json.dumps(line, default=str) + "\n")
    stream.flush()


def set_var(name, value):
    return bytes([1, 3, Scope.txn]) + string(name) + Typed.of(value).encode()


def actions(answer):
    encoded = b"".join(set_var(k, v) for k, v in answer.items() if k != "allow" and not k.startswith("_"))
    if answer.get("_broken"):
        encoded += bytes([1, 3, 9])
    return encoded + (set_var("allow", answer["allow"]) if "allow" in answer else b"")


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        while len(head := self.rfile.read(4)) == 4:
            frame = Frame.decode(self.rfile.read(int.from_bytes(head, "big")))
            if frame.type == FrameType.HAPROXY_HELLO:
                items = dict(frames.read_kv(frame))
                say(sys.stderr, {"offered": items["capabilities"].value})
                hello = {"version": "2.0", "max-frame-size": 16380, "capabilities": "pipelining"}
                self.send(Frame(FrameType.AGENT_HELLO, payload=encode_kv(as_hello(hello))))
                if "healthcheck" in items and items["healthcheck"].value:
                    return
            elif frame.type == FrameType.NOTIFY:
                self.answer(frame)
            else:
                return

    def answer(self, frame):
        asked = {m.name: {k: v.value for k, v in m.arguments} for m in frames.read_messages(frame)}
        say(sys.stderr, {"asked": asked})
        authorization = asked["iam-check"]["authorization"]
        scheme, _, text = (authorization or "").partition(" ")
        plays = scheme == "Puppet" or text.startswith("{")
        answer = json.loads(text) if plays else {"status": 401, "reason": "none", "allow": False}
        if garbage := answer.get("_garbage"):
            self.wfile.write(bytes.fromhex(garbage))
        elif answer.get("_close") or (lost := answer.get("_lost") if text not in LOST else None):
            LOST.add(text)
            if lost == "goodbye":
                self.send(Frame(FrameType.AGENT_DISCONNECT, payload=GOODBYE))
                # HAProxy 3.2 may not ask again if the end comes with the goodbye; 3.0 does not end it itself.
                select.select([self.connection], [], [], 0.3)
            self.connection.shutdown(socket.SHUT_RDWR)
        elif not answer.get("_silent"):
            self.acknowledge(frame, answer)

    def acknowledge(self, frame, answer):
        self.send(Frame(FrameType.ACK, frame.stream_id, frame.frame_id, actions(answer)))

    def send(self, frame):
        self.wfile.write(frame.encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 256  # HAProxy 3.2 may connect for each of many requests at once.


def reload(*_):
    try:
        world = json.loads(WORLD.read_text())
        line = {"reloaded": True, "backends": len(world["backends"])}
    except (ValueError, KeyError) as error:
        line = {"reloaded": False, "error": str(error)}
    say(sys.stdout, line)


def main(handler=Handler):
    world = json.loads(WORLD.read_text())
    if "dies" in world.get("x-puppet", {}):
        sys.exit("puppet: told to die at start")
    host, _, port = world["agent"]["listen"].rpartition(":")
    server = Server((host, int(port)), handler)
    signal.signal(signal.SIGHUP, reload)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    say(sys.stdout, {"ready": True, "address": "{}:{}".format(*server.server_address)})
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
