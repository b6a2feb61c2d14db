"""The worker that accepts. The others are numbers in shared memory; a stuck one never changes."""

import asyncio
import errno
import os
import resource
import socket
from contextlib import contextmanager

import pytest
from spop_client import until

from iamroles_agent.serving import accepting
from iamroles_agent.serving.accepting import Acceptor, shared_counts

OTHER = 77 << 32
"""The number of a worker without connections."""


class Worker:
    """Worker 0, with one connection; two others have none."""

    def __init__(self):
        self.counts = shared_counts(3)
        self.counts[1] = self.counts[2] = OTHER
        self.taken: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.acceptor = Acceptor([self.listener], self.taken.append, self.counts, 0)
        self.clients: list[socket.socket] = []
        self.counts[0] += 1

    def connect(self):
        self.clients.append(socket.create_connection(self.listener.getsockname()))


@contextmanager
def working():
    worker = Worker()
    try:
        yield worker
    finally:
        worker.acceptor.stop()
        for sock in (*worker.taken, *worker.clients):
            sock.close()


@pytest.fixture
def patient(monkeypatch):
    monkeypatch.setattr(accepting, "PATIENCE", 3600.0)


async def some_time():
    """Let the loop run all that it would."""
    for _ in range(5):
        await asyncio.sleep(0.002)


async def test_a_connection_is_left_to_whoever_has_fewer_until_nobody_has(patient):
    with working() as worker:
        worker.connect()
        await some_time()
        assert worker.taken == []
        worker.counts[1] = OTHER + 1
        await some_time()
        assert worker.taken == []
        worker.counts[2] = 0  # it died
        await until(lambda: len(worker.taken) == 1)
        assert worker.counts[0] & 0xFFFF == 2
        worker.acceptor.closed()
        assert worker.counts[0] & 0xFFFF == 1


async def test_who_is_stuck_is_waited_for_once_and_again_when_it_has_moved(monkeypatch):
    with working() as worker:
        worker.connect()
        await until(lambda: len(worker.taken) == 1)
        monkeypatch.setattr(accepting, "PATIENCE", 3600.0)
        worker.connect()
        await until(lambda: len(worker.taken) == 2)
        worker.counts[1] = OTHER + (1 << 32)  # it was replaced
        worker.connect()
        await some_time()
        assert len(worker.taken) == 2
        worker.counts[1] += 3
        await until(lambda: len(worker.taken) == 3)


async def test_a_connection_that_somebody_took_is_waited_for_no_longer(patient):
    with working() as worker:
        worker.connect()
        await some_time()
        taken, _ = worker.listener.accept()
        taken.close()
        await some_time()
        worker.counts[1] = worker.counts[2] = 0
        worker.connect()
        await until(lambda: len(worker.taken) == 1)


async def test_without_descriptors_it_rests_and_goes_on(monkeypatch, caplog):
    monkeypatch.setattr(accepting, "_RETRY", 0.01)
    with working() as worker:
        worker.counts[1] = worker.counts[2] = 0
        worker.clients.append(client := socket.socket())
        client.setblocking(False)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (4, hard))
        try:
            client.connect_ex(worker.listener.getsockname())
            await until(lambda: os.strerror(errno.EMFILE) in caplog.text)
            await some_time()
            assert worker.taken == []
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await until(lambda: len(worker.taken) == 1)
        assert caplog.text.count("cannot accept") < 20


async def test_who_stops_takes_what_others_were_to_have_and_is_waited_for_by_nobody(patient):
    with working() as worker:
        worker.connect()
        worker.connect()
        await some_time()
        assert worker.taken == []
        worker.acceptor.stop()
        assert len(worker.taken) == 2
    with working() as worker:
        worker.acceptor.stop()
        worker.acceptor.closed()
        worker.acceptor.stop()
        assert worker.counts[0] == 0
