"""A server that holds each request by a plan, and writes down how long it really held it.

`python truth_server.py PLAN RECORD`: prints `{"ready": true, "address": "host:port"}`; answers until its
standard input ends, with a line at the 1,000th answer; then writes the record, one line of `connection number
held sending` for each request: nanoseconds from the kernel's stamp on the request to the clock just before
the answer is sent, and from there to the end of `send` (if long, this process was interrupted, and its word
is worth less). Each answer says the first of these in its body, so that the meter's sample and the record are
matched request by request.

It shares no code with the meter. Plans: `fixed` holds 5 ms; `stall` answers at once but holds all that comes
in the first 200 ms of each second until these are over; `bimodal` holds nine of ten for 1 ms, the tenth for
10 ms; `quick` answers at once.
"""

import heapq
import itertools
import json
import random
import select
import socket
import struct
import sys
import time
from pathlib import Path

MS = 1_000_000
SECOND = 1000 * MS


def fixed(received, chance):
    return received + 5 * MS


def stall(received, chance):
    into = received % SECOND
    return received if into >= 200 * MS else received - into + 200 * MS


def bimodal(received, chance):
    return received + (10 * MS if chance.random() < 0.1 else MS)


def quick(received, chance):
    return received


PLANS = {"fixed": fixed, "stall": stall, "bimodal": bimodal, "quick": quick}


class Server:
    def __init__(self, plan):
        self.plan, self.chance = PLANS[plan], random.Random(7)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.listener.setblocking(False)
        self.epoll = select.epoll()
        self.epoll.register(self.listener, select.EPOLLIN)
        self.epoll.register(sys.stdin, select.EPOLLIN)
        self.by_fd, self.held, self.record = {}, [], []
        self.order = itertools.count()

    def serve(self):
        address = "{}:{}".format(*self.listener.getsockname())
        sys.stdout.write(json.dumps({"ready": True, "address": address}) + "\n")
        sys.stdout.flush()
        while True:
            while self.held and self.held[0][0] <= time.time_ns():
                self.answer(heapq.heappop(self.held))
            wait = (self.held[0][0] - time.time_ns()) / 1e9 - 70e-6 if self.held else 1.0
            if wait > 70e-6:
                select.select([self.epoll], [], [], wait)
            for fd, _ in self.epoll.poll(0):
                if fd == self.listener.fileno():
                    self.accept()
                elif fd == sys.stdin.fileno():
                    return
                else:
                    self.read(fd)

    def accept(self):
        connection, _ = self.listener.accept()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS
        self.by_fd[connection.fileno()] = [connection, len(self.by_fd), 0]
        self.epoll.register(connection, select.EPOLLIN)

    def read(self, fd):
        entry = self.by_fd[fd]
        try:
            data, ancillary, _, _ = entry[0].recvmsg(4096, 64)
        except ConnectionError:
            data = b""
        if not data:
            self.epoll.unregister(fd)
            entry[0].close()
            return
        assert data.endswith(b"\r\n\r\n"), "one request at a time, please"
        received = time.time_ns()
        if ancillary:  # the kernel begins to stamp some milliseconds after the first socket asked for it
            seconds, nanoseconds = struct.unpack("@ll", ancillary[0][2])
            received = seconds * SECOND + nanoseconds
        held = (self.plan(received, self.chance), next(self.order), received, entry)
        if held[0] <= time.time_ns():
            self.answer(held)
        else:
            heapq.heappush(self.held, held)

    def answer(self, held):
        _, _, received, entry = held
        connection, number, _ = entry
        entry[2] += 1
        took = time.time_ns() - received
        text = b"HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\nheld=%013d\n" % took
        try:
            connection.send(text)
        except OSError:  # the client is gone: a generator that was killed
            return
        sending = time.time_ns() - received - took
        self.record.append((number, entry[2], took, sending))
        if len(self.record) == 1000:
            sys.stdout.write("1000 answers\n")
            sys.stdout.flush()


if __name__ == "__main__":
    server = Server(sys.argv[1])
    server.serve()
    with Path(sys.argv[2]).open("w") as file:
        file.writelines(f"{a} {b} {c} {d}\n" for a, b, c, d in server.record)
