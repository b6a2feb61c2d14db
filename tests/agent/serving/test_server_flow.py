"""The server's limits, its flow control, and how it drains."""

import asyncio

import pytest
from spop_client import Client, DictatedGate, HeldGate, serving, talking, until
from spop_transcript import ALLOW, ALLOWED, DENIED, DENY, FAILED, KNOWN, hello, notify

from iamroles_agent.serving import idle
from iamroles_agent.serving import server as server_module


def bye(message, status=0):
    return f"AGENT-DISCONNECT 0/0 FIN status-code={status} message=b'{message}'"


BYE = bye("the agent is stopping")


class TestLimits:
    async def test_handshake_timeout(self):
        async with serving(DictatedGate(), handshake_timeout="30ms") as server:
            silent = await Client.connect(server.address, greet=False)
            idle = await Client.connect(server.address)
            halfway = await Client.connect(server.address, greet=False)
            halfway.send(hello()[:10])

            for client in (silent, halfway):
                assert await client.receive_all() == [bye("no HELLO in time", 2)]
                await client.close()
            idle.send(notify())
            assert await idle.receive() == f"ACK 1/1 FIN {DENIED}"
            assert server.stats.handshake_timeouts == 2
            await idle.close()

    async def test_connection_limit(self):
        async with serving(DictatedGate(), max_connections=2) as server:
            clients = [await Client.connect(server.address) for _ in range(2)]
            third = await Client.connect(server.address, greet=False)

            assert await third.receive_all() == [bye("too many connections", 13)]
            assert (server.stats.open, server.stats.refused) == (2, 1)
            await third.close()
            await clients[0].close()
            await until(lambda: server.stats.open == 1)
            clients[0] = await Client.connect(server.address)
            for client in clients:
                await client.close()

    async def test_a_connection_that_got_its_goodbye_takes_and_gives_no_place(self, monkeypatch):
        """Though HAProxy holds it open, however long it is idle; but it takes a descriptor."""
        monkeypatch.setattr(idle, "IDLE", 0.0)
        gate = HeldGate()
        async with serving(gate, max_connections=1) as server:
            clients = [await Client.connect(server.address)]
            clients[0].send(hello())
            assert "AGENT-DISCONNECT" in await clients[0].receive()
            clients.append(await Client.connect(server.address))
            clients[1].send(notify())
            await until(lambda: gate.asked)
            server.idle._look()
            clients.append(await Client.connect(server.address, greet=False))
            assert await clients[2].receive_all() == [bye("too many connections", 13)]
            gate.gone_on.set()
            monkeypatch.setattr(idle, "IDLE", 60.0)
            server.idle._look()
            server.most, server.room = 2, len(server.peers)
            clients.append(await Client.connect(server.address, greet=False))
            assert await clients[3].receive_all() == [bye("too many connections", 13)]
            for client in clients:
                await client.close()

    async def test_when_all_are_taken_the_longest_idle_gives_its_place(self, monkeypatch):
        monkeypatch.setattr(idle, "IDLE", 0.0)
        gate = DictatedGate()
        async with serving(gate, max_connections=3) as server:
            oldest, asking, _ = clients = [await Client.connect(server.address) for _ in range(3)]
            await asyncio.sleep(0.005)  # until the loop's clock has moved
            for client in clients[1:]:
                client.send(notify())
                await client.receive()
            clients.append(await Client.connect(server.address))
            assert await oldest.receive_all() == [bye("another connection needs the place")]
            asking.send(notify(ids=(2, 1)))
            assert await asking.receive() == f"ACK 2/1 FIN {DENIED}"
            assert server.stats.refused == 0
            for client in clients:
                await client.close()

    async def test_a_connection_that_waits_for_its_answer_is_not_idle(self, monkeypatch):
        monkeypatch.setattr(idle, "IDLE", 0.0)
        gate = HeldGate()
        async with serving(gate, max_connections=1) as server:
            client = await Client.connect(server.address)
            client.send(notify())
            await until(lambda: gate.asked)
            server.idle._longest = 0.0
            server.idle._look()
            other = await Client.connect(server.address, greet=False)
            assert "too many connections" in await other.receive()
            gate.gone_on.set()
            assert await client.receive() == f"ACK 1/1 FIN {DENIED}"
            server.idle._look()
            assert "nothing was asked for long" in await client.receive()
            for one in (client, other):
                await one.close()

    async def test_halves_of_frames_hold_no_places(self, monkeypatch):
        monkeypatch.setattr(idle, "IDLE", 0.05)
        async with serving(DictatedGate(), max_connections=2) as server:
            stuck = [await Client.connect(server.address) for _ in range(2)]
            for client in stuck:
                client.send(notify()[:9])
            answer = ""
            while not answer.startswith("AGENT-HELLO"):
                other = await Client.connect(server.address, greet=False)
                other.send(hello())
                answer = await other.receive()
                await other.close()
            server.idle._longest = 0.1
            server.idle._look()
            said = await asyncio.gather(*(client.receive_all() for client in stuck))
            ends = ["another connection needs the place", "nothing was asked for long"]
            assert sorted(said) == [[bye(end)] for end in ends]
            for client in stuck:
                await client.close()

    async def test_a_burst_of_connections(self):
        async with serving(DictatedGate()) as server:
            clients = await asyncio.gather(*(Client.connect(server.address) for _ in range(150)))
            for client in clients:
                client.send(notify())
            answers = await asyncio.gather(*(client.receive() for client in clients))

            assert set(answers) == {f"ACK 1/1 FIN {DENIED}"}
            await asyncio.gather(*(client.close() for client in clients))

    async def test_a_peer_that_reads_late_gets_every_answer(self):
        """Far more than socket buffers hold: the agent stops reading until its answers are taken."""
        async with talking(DictatedGate(memory=KNOWN)) as (server, client):
            count = 30_000
            client.send(*(notify() for _ in range(count)))
            await until(lambda: server.stats.notifies > 0)

            for _ in range(count):
                assert await client.receive() == f"ACK 1/1 FIN {ALLOWED}"


class RecordingTransport(asyncio.Transport):
    """The part of a transport that the protocol uses."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def get_extra_info(self, name, default=None):
        return default

    def is_closing(self):
        return False

    def is_reading(self):
        return [name for name, *_ in self.calls if name.endswith("reading")][-1:] != ["pause_reading"]

    def __getattribute__(self, name):
        if name in ("write", "pause_reading", "resume_reading", "write_eof", "close", "abort"):
            return lambda *arguments: self.calls.append((name, *map(len, arguments)))
        return super().__getattribute__(name)


class TestFlow:
    def peer(self, server):
        transport, peer = RecordingTransport(), server_module._Peer(server)
        peer.connection_made(transport)
        peer.data_received(hello())
        transport.calls.clear()
        return transport, peer

    async def test_one_read_one_write(self):
        async with serving(DictatedGate(memory=KNOWN)) as server:
            transport, peer = self.peer(server)
            peer.data_received(b"".join(notify(ids=(n, 1)) for n in range(50)))

            assert transport.calls == [("write", 50 * (11 + len(ALLOW)))]
            peer.connection_lost(None)

    async def test_reading_stops_while_answers_are_not_taken(self):
        async with serving(DictatedGate()) as server:
            transport, peer = self.peer(server)
            peer.pause_writing()
            peer.pause_writing()
            peer.resume_writing()

            assert transport.calls == [("pause_reading",), ("resume_reading",)]
            peer.connection_lost(None)

    async def test_half_closed_while_reading_is_paused(self, monkeypatch):
        monkeypatch.setattr(server_module, "MAX_PENDING", 2)
        gate = HeldGate(ALLOW)
        async with talking(gate) as (_, client):
            client.send(notify() * 3)
            client.half_close()
            await until(lambda: len(gate.asked) == 3)
            gate.gone_on.set()

            assert await client.receive_all() == [f"ACK 1/1 FIN {ALLOWED}"] * 3

    @pytest.mark.parametrize("waits", [False, True])
    async def test_half_closed_by_a_peer_that_takes_no_answers(self, tmp_path, waits):
        gate, listen = HeldGate(), f"unix:{tmp_path}/agent.sock"
        gate.memory = KNOWN
        async with serving(gate, listen=listen) as server:
            client = await Client.connect(server.address)
            (peer,) = server.peers
            while not peer._transport.get_write_buffer_size():
                client.send(notify() * 50)
                await asyncio.sleep(0.001)
            if waits:
                gate.memory = {}
                client.send(notify())
                await until(lambda: gate.asked)
            client.half_close()
            await until(lambda: peer._half_closed)
            gate.gone_on.set()
            await until(lambda: not server.peers)
            client.vanish()

    async def test_reading_stops_while_too_much_is_under_way(self, monkeypatch):
        monkeypatch.setattr(server_module, "MAX_PENDING", 2)
        gate = HeldGate(DENY)
        async with serving(gate) as server:
            transport, peer = self.peer(server)
            peer.data_received(notify() * 2)
            assert transport.calls == [("pause_reading",)]
            gate.gone_on.set()
            await until(lambda: server.stats.judged == 2)

            assert ("resume_reading",) in transport.calls
            peer.connection_lost(None)


class TestAge:
    """`max_connection_age`: the end of a connection between two questions."""

    OLD = bye("the connection is old")

    @pytest.fixture(autouse=True)
    def young(self, monkeypatch):
        monkeypatch.setattr(server_module, "_YOUNGEST", 0.2)
        monkeypatch.setattr(server_module, "_MOMENT", 0.02)

    async def test_an_idle_connection_ends(self):
        async with talking(DictatedGate(), max_connection_age="1s") as (server, client):
            client.send(notify())
            await client.receive()

            assert await client.receive_all() == [self.OLD]
            await until(lambda: server.stats.open == 0)

    async def test_what_is_under_way_is_answered_first(self):
        gate = HeldGate(ALLOW)
        async with talking(gate, max_connection_age="1s") as (server, client):
            client.send(notify())
            (peer,) = server.peers
            await until(lambda: peer._life is not server_module._SERVING)
            await asyncio.sleep(0.05)
            client.send(notify(ids=(2, 1)))
            await until(lambda: len(gate.asked) == 2)
            gate.gone_on.set()

            said = await client.receive_all()
            assert sorted(said[:-1]) == [f"ACK 1/1 FIN {ALLOWED}", f"ACK 2/1 FIN {ALLOWED}"]
            assert said[-1] == self.OLD

    async def test_a_question_that_is_here_already_is_answered_first(self, monkeypatch):
        async with talking(DictatedGate(), max_connection_age="1s") as (server, client):
            (peer,) = server.peers
            client.send(notify())
            await client.receive()
            unread = iter([True, True, False])
            monkeypatch.setattr(server_module._Peer, "_unread", lambda _peer: next(unread, False))
            peer._is_old()
            client.send(notify(ids=(2, 1)))

            assert await client.receive() == f"ACK 2/1 FIN {DENIED}"
            assert await client.receive_all() == [self.OLD]

    async def test_without_the_key_none_ends(self):
        async with talking(DictatedGate()) as (server, client):
            (peer,) = server.peers

            assert peer._ageing is None
            await client.close()

    async def test_half_a_question_is_waited_for(self):
        async with talking(DictatedGate(), max_connection_age="1s") as (server, client):
            (peer,) = server.peers
            half = notify()
            client.send(half[:9])
            await until(lambda: peer._life is not server_module._SERVING)
            await asyncio.sleep(0.1)
            client.send(half[9:])

            assert await client.receive_all() == [f"ACK 1/1 FIN {DENIED}", self.OLD]

    @pytest.mark.parametrize("asked", [b"", notify()], ids=["alone", "after another"])
    async def test_half_a_question_is_not_waited_for_without_end(self, monkeypatch, asked):
        monkeypatch.setattr(server_module, "GENTLY", 0.1)
        async with talking(DictatedGate(), max_connection_age="1s") as (_server, client):
            client.send(asked, notify()[:9])

            assert (await client.receive_all())[-1] == self.OLD

    async def test_a_peer_that_takes_no_answers_is_not_waited_for_without_end(self, monkeypatch, tmp_path):
        monkeypatch.setattr(server_module, "GENTLY", 0.1)
        gate, listen = DictatedGate(memory=KNOWN), f"unix:{tmp_path}/agent.sock"
        async with serving(gate, max_connection_age="1s", listen=listen) as server:
            client = await Client.connect(server.address)
            (peer,) = server.peers
            client.send(notify() * 30_000)
            await until(lambda: peer._writing_paused)
            await until(lambda: server.stats.open == 0)
            client.vanish()


class TestDrain:
    async def test_what_is_in_flight_is_answered(self):
        gate = HeldGate(ALLOW)
        async with serving(gate) as server:
            client, idle = await Client.connect(server.address), await Client.connect(server.address)
            client.send(notify())
            await until(lambda: len(gate.asked) == 1)
            draining = asyncio.create_task(server.drain())

            assert await idle.receive_all() == [BYE]
            with pytest.raises(OSError):  # noqa: PT011 - refused or reset, as the kernel likes
                await Client.connect(server.address)
            gate.gone_on.set()
            assert await client.receive_all() == [f"ACK 1/1 FIN {ALLOWED}", BYE]
            for each in (client, idle):
                await each.close()
            await draining

    async def test_what_was_sent_before_is_answered(self):
        async with talking(DictatedGate()) as (server, client):
            client.send(notify())
            draining = asyncio.create_task(server.drain())

            assert await client.receive_all() == [f"ACK 1/1 FIN {DENIED}", BYE]
            await client.close()
            await draining

    async def test_patience_ends_with_a_deny(self):
        gate = HeldGate()
        async with talking(gate, drain_timeout="100ms") as (server, client):
            client.send(notify())
            await until(lambda: len(gate.asked) == 1)
            draining = asyncio.create_task(server.drain())

            assert await client.receive_all() == [f"ACK 1/1 FIN {FAILED}", BYE]
            assert gate.details == ["the agent is stopping"]
            await client.close()
            await draining

    async def test_a_peer_that_never_closes_does_not_hold_it_up(self):
        async with talking(DictatedGate()) as (server, client):
            await server.drain()

            assert await client.receive_all() == [BYE]
