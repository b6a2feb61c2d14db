"""Mutual TLS on the agent's TCP socket: who may ask, and that certificates rotate while it serves."""

import asyncio
import gc
import os
import socket
import ssl
import weakref

import pytest
from spop_client import Client, DictatedGate, descriptors, serving, until
from spop_transcript import DENIED, notify

from iamroles_agent.base.config import AgentTls
from iamroles_agent.base.errors import StartError
from iamroles_agent.serving import server as serving_module
from iamroles_agent.serving import tls as tls_module
from iamroles_agent.serving.tls import Tls
from iamroles_scenarios.engine.certificates import Authority

UNKNOWN = "AGENT-DISCONNECT 0/0 FIN status-code=13 message=b'unknown certificate'"


class Files:
    """The agent's certificate and authorities in a directory, and contexts of clients."""

    def __init__(self, directory):
        self.directory, self.authority = directory, Authority()
        self.install(self.authority)

    def install(self, authority):
        for name, text in (("agent.pem", authority.issue("agent.test")), ("ca.pem", authority.public)):
            (self.directory / f"{name}.new").write_text(text)
            (self.directory / f"{name}.new").replace(self.directory / name)

    def tls(self, *names):
        return Tls(AgentTls(certificate="agent.pem", ca="ca.pem", names=list(names)), self.directory)

    def client(self, name="", authority=None, issuer=None):
        """A context as HAProxy's: it trusts the present authority, and shows a certificate of `name`."""
        authority = authority or self.authority
        context = ssl.create_default_context(cadata=authority.public)
        context.check_hostname = False
        if name:
            (self.directory / "own.pem").write_text((issuer or authority).issue(name))
            context.load_cert_chain(self.directory / "own.pem")
        return context


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@pytest.mark.parametrize(("mode", "warned"), [(0o640, False), (0o644, True)])
def test_a_key_that_everybody_may_read_is_told_of(files, caplog, mode, warned):
    (files.directory / "agent.pem").chmod(mode)
    files.tls()

    assert ("agent.pem: everybody may read this key" in caplog.text) == warned


async def served(server, context):
    """Return a client that was answered."""
    client = await Client.connect(server.address, tls=context)
    client.send(notify())
    assert await client.receive() == f"ACK 1/1 FIN {DENIED}"
    return client


async def test_a_peer_with_a_certificate_is_served_and_told_goodbye(files):
    async with serving(DictatedGate(), tls=files.tls("other.test", "Proxy.test")) as server:
        client = await served(server, files.client("proxy.test"))
        client.send(b"\0\0\0\3bad")
        assert [line.split()[0] for line in await client.receive_all()] == ["AGENT-DISCONNECT"]
        await client.close()


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_a_connection_that_was_open_at_a_reload_is_freed_when_it_closes(files, secure):
    async with serving(DictatedGate(), tls=files.tls() if secure else None) as server:
        client = await served(server, files.client("proxy.test") if secure else None)
        [peer] = map(weakref.ref, server.peers)
        gc.disable()  # a reload's `gc.freeze` keeps the collector from the connection for good
        try:
            await client.close()
            await until(lambda: peer() is None)
        finally:
            gc.enable()


async def test_a_drained_connection_ends_with_a_goodbye(files):
    async with serving(DictatedGate(), tls=files.tls()) as server:
        client = await served(server, files.client("proxy.test"))
        drained = asyncio.create_task(server.drain())
        assert "the agent is stopping" in await client.receive()
        await client.close()
        await drained


async def test_a_peer_without_a_certificate_or_with_anothers_is_not_answered(files):
    gate = DictatedGate()
    async with serving(gate, tls=files.tls("proxy.test")) as server:
        for context in (files.client(), files.client("proxy.test", issuer=Authority())):
            with pytest.raises((OSError, AssertionError)):
                await Client.connect(server.address, tls=context)
        plain = await Client.connect(server.address, greet=False)
        plain.send(notify())
        assert await plain.receive_all() == []
        named = await Client.connect(server.address, tls=files.client("web.test"), greet=False)
        assert await named.receive_all() == [UNKNOWN]
        await named.close()
        await until(lambda: server._acceptor._counts[0] & 0xFFFF == 0)
    assert gate.asked == []


@pytest.mark.parametrize("linger", [0.0, 3600.0], ids=["ended", "held"])
async def test_a_refused_peer_that_does_not_close_is_ended_and_takes_a_descriptor(files, monkeypatch, linger):
    monkeypatch.setattr(serving_module, "LINGER", linger)
    async with serving(DictatedGate(), tls=files.tls("proxy.test")) as server:
        host, port = server.address.split(":")
        wrong, server.room = files.client("web.test"), 1
        with await asyncio.to_thread(wrong.wrap_socket, socket.create_connection((host, int(port)))):
            await until(lambda: server.stats.refused)  # it reads nothing, and so does not close
            if linger:
                other = await Client.connect(server.address, tls=files.client("proxy.test"), greet=False)
                assert "too many connections" in await other.receive()
                await other.close()
            else:
                await until(lambda: server._acceptor._counts[0] & 0xFFFF == 0)
        await until(lambda: not server.peers)


async def test_silent_handshakes_are_bounded_and_keep_nobody_out(files, monkeypatch):
    monkeypatch.setattr(serving_module, "MAX_COMING", 4)
    async with serving(DictatedGate(), tls=files.tls(), handshake_timeout="1h") as server:
        before = descriptors()
        silent = [await Client.connect(server.address, greet=False) for _ in range(40)]
        await until(lambda: server._acceptor._counts[0] & 0xFFFF == 4)
        await until(lambda: descriptors() <= before + 40 + 5)  # a socket closes a turn after its task
        client = await served(server, files.client("proxy.test"))
        for one in (client, *silent):
            await one.close()


async def test_a_connection_that_loses_its_place_right_after_its_handshake_counts_once(files, monkeypatch):
    made = serving_module._Peer.connection_made

    def evicted(self, transport):
        made(self, transport)
        [task] = server._handshakes._tasks
        asyncio.get_running_loop().call_soon(task.cancel)

    async with serving(DictatedGate(), tls=files.tls()) as server:
        client = await served(server, files.client("proxy.test"))
        monkeypatch.setattr(serving_module._Peer, "connection_made", evicted)
        other = await Client.connect(server.address, tls=files.client("proxy.test"), greet=False)
        assert await other.receive_all() == []
        await other.close()
        await until(lambda: len(server.peers) == 1)
        assert server._acceptor._counts[0] & 0xFFFF == 1
        await client.close()


async def test_certificates_rotate_without_a_lost_question(files, caplog, monkeypatch):
    async with serving(DictatedGate(), tls=files.tls()) as server:
        first = await served(server, files.client("proxy.test"))
        (files.directory / "ca.pem").write_text("half a file")
        second = await served(server, files.client("proxy.test"))
        assert "agent.tls.ca: " in caplog.text
        assert "the certificates before it stay in force" in caplog.text
        successor = Authority()
        files.install(successor)
        with monkeypatch.context() as passing:
            passing.setattr(tls_module, "_PAUSE", 0.0)
            passing.setattr(tls_module.files, "read", lambda *_: (files.directory / "no").stat())
            await (await served(server, files.client("proxy.test"))).close()
        third = await served(server, files.client("proxy.test", successor))
        with pytest.raises((OSError, AssertionError)):
            await Client.connect(server.address, tls=files.client("proxy.test", files.authority))
        for client in (first, second, third):
            client.send(notify(ids=(2, 1)))
            assert await client.receive() == f"ACK 2/1 FIN {DENIED}"
            await client.close()


def test_authorities_of_the_same_size_and_moment_are_read_again(files):
    where, tls = files.directory / "ca.pem", files.tls()
    before, moment = tls.context(), where.stat().st_mtime_ns
    where.write_text(where.read_text())
    os.utime(where, ns=(moment, moment))  # as `cp -p` and an archive's files without a date have it

    assert tls.context() is not before


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("agent.pem", None, "agent.tls.certificate: .*agent.pem: No such file"),
        ("agent.pem", "", "agent.tls.certificate: .*one certificate, its chain and key"),
        ("ca.pem", "nothing", "agent.tls.ca: .*certificates of authorities"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_at_the_start(files, name, text, why):
    (files.directory / name).unlink() if text is None else (files.directory / name).write_text(text)

    with pytest.raises(StartError, match=why):
        files.tls()
