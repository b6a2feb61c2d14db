"""The truth server as a child process, and how far a measurement is from its record."""

import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

import numpy as np

from iamroles_loadtests.asking.plan import Ask, Phase
from iamroles_loadtests.measuring.drive import Driver
from iamroles_loadtests.measuring.histogram import columns
from iamroles_scenarios.traffic import FIELDS, Right, Segment

_ASK = Ask(case="all", payload="GET / HTTP/1.1\r\nHost: truth\r\n\r\n", right=Right(marker=b"held="))
POOLS = {"all": [_ASK]}


class Server:
    """`address` while it runs, and `said`, what it prints; `record` after its end: connection, number, held,
    sending; nanoseconds.
    """

    address: str
    said: IO[str]
    record: np.ndarray


@contextlib.contextmanager
def truth(plan):
    found = Server()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "record")
        command = [sys.executable, str(Path(__file__).with_name("truth_server.py")), plan, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            found.address = json.loads(process.stdout.readline())["address"]
            found.said = process.stdout
            try:
                yield found
            finally:
                process.stdin.close()
                process.wait(10)
        found.record = np.loadtxt(path, dtype=np.int64).reshape(-1, 4)


def phase(address, rate, seconds, **more):
    timetable = [Segment(seconds, rate)] if rate else []
    settings = {"name": "truth", "weights": {"all": 1.0}, "connections": 64, "warmup": 0.3}
    return Phase.model_validate(
        {**settings, "address": address, "timetable": timetable, "seconds": seconds, **more}
    )


class Compared:
    """One run against one plan: what the meter says, and what the server's record says, of the same requests.

    `figures` holds, for each percentile, microseconds by the meter from sent and by the record.
    """

    def __init__(self, plan, rate, seconds, percentiles=(50, 99)):
        raw = []
        with truth(plan) as server:
            self.measured = Driver(POOLS).play(phase(server.address, rate, seconds), raw.append)
        table = columns(raw[0], FIELDS)
        sent, told = table["received"] - table["sent"], table["reported"]
        self.samples = sent.size
        self.over = (sent - told) / 1e3
        """Microseconds, request by request, that the meter's figure exceeds the record's."""
        self.told = told / 1e3
        sends = dict(server.record[:, 2:].tolist())
        self.sends = np.array([sends.get(held, 0) for held in told.tolist()]) / 1e3
        """Microseconds that the send of each answer took the server."""
        self.sending = float(np.median(server.record[:, 3])) / 1e3
        """The median of these: the way between the stamps is as slow as that."""
        # A server that was interrupted between its stamp and its send says less than the truth.
        honest = server.record[server.record[:, 3] < 10e3 * self.sending, 2]
        kept = np.isin(told, honest)
        self.known = np.isin(told, server.record[:, 2]).all()
        self.figures = {
            at: (float(np.percentile(sent[kept], at)) / 1e3, float(np.percentile(told[kept], at)) / 1e3)
            for at in percentiles
        }

    def off(self, factor=1.0):
        """Return how far the worst figure, times a factor, is off, in units of 10 % or of three sends."""
        least = 3 * self.sending
        return max(abs(factor * got - true) / max(0.1 * true, least) for got, true in self.figures.values())

    def share_off(self, factor=1.0):
        """Return the share of requests whose figure, times a factor, is off by 10 % and by three sends.

        What the server's own send of an answer took is taken off: on loopback that is the way of the answer,
        and a server that was interrupted there spoils that one request.
        """
        off = factor * (self.told + self.over) - self.told - self.sends
        return (off > np.maximum(0.1 * self.told, 3 * self.sending)).mean()
