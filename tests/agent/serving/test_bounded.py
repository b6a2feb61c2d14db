"""Bounds of what strangers can take: conversations at a time, and descriptors."""

import asyncio
import json
import resource
import socket
from unittest import mock

import pytest
from spop_client import DictatedGate, serving, until

from iamroles_agent.processes import local_socket
from iamroles_agent.serving.bounded import MOST, Bounded, network_of, raise_descriptors, room
from iamroles_agent.serving.server import MAX_COMING


@pytest.fixture
def limit():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda soft: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Talks:
    """Conversations that go on until they are ended."""

    def __init__(self, most):
        self.bounded, self.begun, self.ended = Bounded(most), [], []

    def begin(self, name, network=""):
        self.bounded.begin(self._talk(name), network)

    async def _talk(self, name):
        self.begun.append(name)
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.append(name)


@pytest.mark.parametrize("apart", [True, False], ids=["one-after-the-other", "in-one-turn"])
async def test_the_oldest_conversation_ends_for_another_and_each_begins_so_that_it_can_close(apart):
    talks = Talks(2)
    for name in "abcd":
        talks.begin(name)
        if apart:
            await until(lambda name=name: name in talks.begun)
    await until(lambda: len(talks.ended) == 2)
    assert (talks.begun, talks.ended) == (list("abcd"), ["a", "b"])
    await talks.bounded.end(0.0)
    await until(lambda: len(talks.ended) == 4)


async def test_plain_connections_that_come_in_one_turn_are_all_taken():
    pairs = [socket.socketpair() for _ in range(2 * MAX_COMING)]
    async with serving(DictatedGate()) as server:
        for ours, _ in pairs:
            ours.setblocking(False)
            server._accepted(ours)
        await until(lambda: server.stats.open == len(pairs))
        for _, theirs in pairs:
            theirs.close()
        await until(lambda: server.stats.open == 0)


async def test_a_network_that_floods_ends_its_own_conversations():
    talks = Talks(3)
    for name, network in ("first", "192.0.2.1"), *((n, "198.51.100.7") for n in range(5)):
        talks.begin(name, network)
        await asyncio.sleep(0)
    await until(lambda: len(talks.ended) == 3)
    assert talks.ended == [0, 1, 2]
    await talks.bounded.end(0.0)


def test_a_network_is_an_ipv4_address_or_half_an_ipv6_one():
    peer = mock.Mock()
    peer.getpeername.side_effect = [("192.0.2.1", 1), ("fe80::1%lo", 1, 0, 1), "", OSError]

    assert [network_of(peer) for _ in range(4)] == ["192.0.2.1", "fe80:0000:0000:0000", "", ""]


@pytest.mark.parametrize(("soft", "connections"), [(4096, 3840), (300, 75), (100, 25)])
def test_connections_leave_descriptors_for_all_else(limit, soft, connections):
    limit(soft)

    assert room() == connections


def test_the_agent_takes_the_descriptors_that_the_system_allows(limit):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit(300)
    raise_descriptors()

    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


async def test_fewer_descriptors_than_connections_lower_the_bound(limit):
    limit(300)
    async with serving(DictatedGate(), max_connections=4096) as server:
        assert server.most == 75


async def test_silent_peers_of_the_local_socket_keep_no_command_out(tmp_path):
    async def status(_question):
        return {"pid": 7}

    sock = local_socket.bind(tmp_path / "agent.sock")
    here = local_socket.LocalSocket(sock)
    here.commands["status"] = status
    await here.open()
    silent = [await asyncio.open_unix_connection(tmp_path / "agent.sock") for _ in range(2 * MOST)]
    reader, writer = await asyncio.open_unix_connection(tmp_path / "agent.sock")
    writer.write(b'{"command": "status"}\n')

    assert json.loads(await reader.readline()) == {"pid": 7}
    for _, one in [*silent, (reader, writer)]:
        one.close()
    here.close()
    sock.close()
