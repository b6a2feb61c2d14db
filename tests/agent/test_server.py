"""The server on real sockets: order, failure, disappearance, limits, drain."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from spop_client import Client, DictatedGate, run, serving, until
from spop_transcript import (
    ALLOW,
    DENY,
    check_message,
    context_message,
    disconnect,
    frame,
    hello,
    notify,
)

from iamroles_agent.spop.frames import FrameType
from iamroles_agent.spop.values import DataType

ALLOWED = "status=200 role=b'arn:aws:iam::111111111111:role/r' backend=b'b' expires=9 allow=True"
DENIED = "status=403 reason=b'no_grant' error=b'insufficient_scope' allow=False"
FAILED = "status=503 reason=b'internal_error' allow=False"
BYE = "AGENT-DISCONNECT 0/0 FIN status-code=0 message=b'the agent is stopping'"


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def question(path: str, number: int = 1) -> bytes:
    return notify(context_message() + check_message(path=(DataType.STRING, path.encode())), ids=(number, 1))


class TestAnswers:
    def test_many_questions_in_one_segment(self):
        async def main():
            gate = DictatedGate()
            gate.memory[check_message()] = ALLOW
            async with serving(gate) as server:
                client = await Client.connect(server.address)
                client.send(*(notify(ids=(n, 1)) for n in range(300)))

                assert [await client.receive() for _ in range(300)] == [
                    f"ACK {n}/1 FIN {ALLOWED}" for n in range(300)
                ]
                assert (server.stats.notifies, server.stats.recalled, server.stats.judged) == (300, 300, 0)
                await client.close()

        run(main())

    def test_byte_by_byte(self):
        async def main():
            async with serving(DictatedGate()) as server:
                client = await Client.connect(server.address, greet=False)
                for byte in hello() + notify():
                    client.send(bytes((byte,)))
                    await asyncio.sleep(0)

                assert (await client.receive()).startswith("AGENT-HELLO")
                assert await client.receive() == f"ACK 1/1 FIN {DENIED}"
                await client.close()

        run(main())

    def test_the_gate_gets_the_key_that_it_will_be_asked_by(self):
        async def main():
            gate = DictatedGate()
            async with serving(gate) as server:
                client = await Client.connect(server.address)
                client.send(notify())
                await client.receive()
                assert gate.keys == [check_message()]
                gate.memory[gate.keys[0]] = ALLOW
                client.send(notify(context_message(b"r2", 999, None) + check_message(), ids=(3, 1)))

                assert await client.receive() == f"ACK 3/1 FIN {ALLOWED}"
                await client.close()

        run(main())

    def test_a_slow_question_delays_no_other(self):
        async def main():
            gone_on = asyncio.Event()

            async def judge(check):
                if check.path == "/slow":
                    await gone_on.wait()
                    return ALLOW
                return DENY

            async with serving(DictatedGate(judge)) as server:
                client, other = await Client.connect(server.address), await Client.connect(server.address)
                client.send(question("/slow", 1), question("/quick", 3), notify(b"", ids=(5, 1)))
                other.send(question("/quick", 1))

                assert await client.receive() == "ACK 5/1 FIN (nothing)"
                assert await client.receive() == f"ACK 3/1 FIN {DENIED}"
                assert await other.receive() == f"ACK 1/1 FIN {DENIED}"
                gone_on.set()
                assert await client.receive() == f"ACK 1/1 FIN {ALLOWED}"
                await client.close()
                await other.close()

        run(main())

    def test_a_broken_connection_harms_no_other(self):
        async def main():
            async with serving(DictatedGate()) as server:
                good = await Client.connect(server.address)
                for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 5000, b"\x00" * 9, hello() + hello()):
                    bad = await Client.connect(server.address, greet=False)
                    bad.send(garbage)
                    assert (await bad.receive_all())[-1].startswith("AGENT-DISCONNECT")
                    await bad.close()
                good.send(notify())

                assert await good.receive() == f"ACK 1/1 FIN {DENIED}"
                assert server.stats.protocol_errors == 4
                await good.close()

        run(main())

    def test_unix_socket(self, tmp_path):
        async def main():
            path = tmp_path / "agent.sock"
            async with serving(DictatedGate(), listen=f"unix:{path}") as server:
                assert server.address == f"unix:{path}"
                client = await Client.connect(server.address)
                client.send(notify())

                assert await client.receive() == f"ACK 1/1 FIN {DENIED}"
                await client.close()
            assert not path.exists()

        run(main())

    def test_ipv6(self):
        async def main():
            try:
                async with serving(DictatedGate(), listen="[::1]:0") as server:
                    assert server.address.startswith("[::1]:")
                    await (await Client.connect(server.address)).close()
            except OSError as error:  # pragma: no cover
                pytest.skip(f"this host has no IPv6: {error}")

        run(main())


class TestFailures:
    @pytest.mark.parametrize(
        ("fault", "detail"),
        [
            (ValueError("secret"), "the decision failed: ValueError"),
            (asyncio.CancelledError(), "the decision was cancelled"),
            (RecursionError(), "the decision failed: RecursionError"),
        ],
    )
    def test_a_decision_that_fails_is_a_deny(self, fault, detail):
        async def main():
            async def judge(check):
                raise fault

            gate = DictatedGate(judge)
            async with serving(gate) as server:
                client = await Client.connect(server.address)
                client.send(notify())

                assert await client.receive() == f"ACK 1/1 FIN {FAILED}"
                assert (gate.details, server.stats.failed) == ([detail], 1)
                await client.close()

        run(main())

    def test_a_decision_that_takes_too_long_is_a_deny(self):
        async def main():
            async def judge(check):
                await asyncio.Event().wait()

            gate = DictatedGate(judge)
            async with serving(gate, decision_timeout="20ms") as server:
                client = await Client.connect(server.address)
                client.send(notify())

                assert await client.receive() == f"ACK 1/1 FIN {FAILED}"
                assert gate.details == ["no decision within 0.02 s"]
                await client.close()

        run(main())

    def test_a_memory_that_fails_is_no_memory(self):
        async def main():
            gate = DictatedGate()
            gate.memory = None
            async with serving(gate) as server:
                client = await Client.connect(server.address)
                client.send(notify())

                assert await client.receive() == f"ACK 1/1 FIN {DENIED}"
                await client.close()

        run(main())

    def test_even_failing_may_fail(self):
        async def main():
            gate = DictatedGate()
            gate.asked = gate.details = None
            async with serving(gate) as server:
                client = await Client.connect(server.address)
                client.send(notify())

                assert await client.receive() == f"ACK 1/1 FIN {FAILED}"
                await client.close()

        run(main())

    def test_an_answer_that_cannot_be_sent_is_a_deny(self):
        async def main():
            async def judge(check):
                return ALLOW + b"\x01\x03\x02" + b"x" * 20000

            async with serving(DictatedGate(judge)) as server:
                client = await Client.connect(server.address)
                client.send(notify())

                assert await client.receive() == f"ACK 1/1 FIN {FAILED}"
                await client.close()

        run(main())

    def test_an_ambiguous_question_is_a_deny(self):
        async def main():
            gate = DictatedGate()
            gate.memory[check_message()] = ALLOW
            async with serving(gate) as server:
                client = await Client.connect(server.address)
                client.send(notify(context_message() + check_message() * 2))

                assert await client.receive() == f"ACK 1/1 FIN {FAILED}"
                assert gate.details == ["2 iam-check messages in one NOTIFY"]
                await client.close()

        run(main())


class TestDisappearance:
    def test_a_peer_that_vanishes_leaves_no_task(self):
        async def main():
            ended = asyncio.Event()

            async def judge(check):
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.set()

            gate = DictatedGate(judge)
            async with serving(gate) as server:
                before = descriptors()
                client = await Client.connect(server.address)
                client.send(notify())
                await until(lambda: len(gate.asked) == 1)
                client.vanish()
                await ended.wait()
                await until(lambda: not server.peers)

                assert (server.stats.pending, server.stats.forgotten, gate.details) == (0, 1, [])
                await until(lambda: len(asyncio.all_tasks()) == 1)
                await until(lambda: descriptors() <= before)

        run(main())

    def test_a_peer_that_closes_while_its_question_is_judged(self):
        """Not to be told from one that closed only its half: judged, and the answer is lost in peace."""

        async def main():
            gone_on = asyncio.Event()

            async def judge(check):
                await gone_on.wait()
                return ALLOW

            gate = DictatedGate(judge)
            async with serving(gate) as server:
                client = await Client.connect(server.address)
                client.send(notify() * 2)
                await until(lambda: len(gate.asked) == 2)
                await client.close()
                gone_on.set()
                await until(lambda: not server.peers)

                assert (server.stats.pending, server.stats.judged) == (0, 2)

        run(main())

    def test_half_closed_after_the_question(self):
        async def main():
            gone_on = asyncio.Event()

            async def judge(check):
                await gone_on.wait()
                return ALLOW

            gate = DictatedGate(judge)
            async with serving(gate) as server:
                client = await Client.connect(server.address)
                client.send(notify(ids=(1, 1)), notify(ids=(3, 1)))
                client.half_close()
                await until(lambda: len(gate.asked) == 2)
                gone_on.set()

                assert sorted(await client.receive_all()) == [f"ACK {n}/1 FIN {ALLOWED}" for n in (1, 3)]
                await until(lambda: not server.peers)
                await client.close()

        run(main())

    @pytest.mark.parametrize("cut_off", [b"", notify()[:-3], b"\x00"])
    def test_closed_by_haproxy(self, cut_off, caplog):
        """A plain close is how HAProxy 3.1 and later end an idle connection: nothing to complain of."""

        async def main():
            async with serving(DictatedGate()) as server:
                client = await Client.connect(server.address)
                client.send(cut_off)
                client.half_close()

                assert await client.receive_all() == []
                await client.close()

        with caplog.at_level(logging.WARNING):
            run(main())
        assert caplog.records == []

    @pytest.mark.parametrize("status", [0, 1, 2])
    def test_disconnected_by_haproxy(self, status, caplog):
        async def main():
            async with serving(DictatedGate()) as server:
                client = await Client.connect(server.address)
                client.send(disconnect(status))

                assert await client.receive_all() == [
                    "AGENT-DISCONNECT 0/0 FIN status-code=0 message=b'goodbye'"
                ]
                await client.close()

        with caplog.at_level(logging.WARNING):
            run(main())
        assert caplog.records == []

    def test_health_check(self):
        async def main():
            async with serving(DictatedGate()) as server:
                client = await Client.connect(server.address, greet=False)
                client.send(hello(healthcheck=(DataType.BOOL, True)))
                lines = await client.receive_all()

                assert [line.split()[0] for line in lines] == ["AGENT-HELLO"]
                await client.close()

        run(main())

    def test_the_reason_survives_a_peer_that_goes_on_sending(self):
        """Without the lingering close, what is unread turns our FIN into RST and the frame may be lost."""

        async def main():
            async with serving(DictatedGate()) as server:
                client = await Client.connect(server.address)
                client.send(b"\x7f\xff\xff\xff" + b"x" * 100_000)
                await until(lambda: server.stats.protocol_errors == 1)
                client.send(b"x" * 100_000)

                (line,) = await client.receive_all()
                assert line.startswith("AGENT-DISCONNECT 0/0 FIN status-code=3")
                await client.close()

        run(main())

    def test_a_peer_that_never_closes_is_closed(self):
        async def main():
            async with serving(DictatedGate()) as server:
                client = await Client.connect(server.address)
                client.send(disconnect())
                await client.receive_all()
                await until(lambda: not server.peers)
                await client.close()

        run(main())


class TestLimits:
    def test_handshake_timeout(self):
        async def main():
            async with serving(DictatedGate(), handshake_timeout="30ms") as server:
                silent = await Client.connect(server.address, greet=False)
                idle = await Client.connect(server.address)
                halfway = await Client.connect(server.address, greet=False)
                halfway.send(hello()[:10])

                for client in (silent, halfway):
                    assert await client.receive_all() == [
                        "AGENT-DISCONNECT 0/0 FIN status-code=2 message=b'no HELLO in time'"
                    ]
                    await client.close()
                idle.send(notify())
                assert await idle.receive() == f"ACK 1/1 FIN {DENIED}"
                assert server.stats.handshake_timeouts == 2
                await idle.close()

        run(main())

    def test_connection_limit(self):
        async def main():
            async with serving(DictatedGate(), max_connections=2) as server:
                clients = [await Client.connect(server.address) for _ in range(2)]
                third = await Client.connect(server.address, greet=False)

                assert await third.receive_all() == [
                    "AGENT-DISCONNECT 0/0 FIN status-code=13 message=b'too many connections'"
                ]
                assert (server.stats.open, server.stats.refused) == (2, 1)
                await third.close()
                await clients[0].close()
                await until(lambda: server.stats.open == 1)
                clients[0] = await Client.connect(server.address)
                for client in clients:
                    await client.close()

        run(main())

    def test_a_burst_of_connections(self):
        async def main():
            async with serving(DictatedGate()) as server:
                clients = await asyncio.gather(*(Client.connect(server.address) for _ in range(150)))
                for client in clients:
                    client.send(notify())
                answers = await asyncio.gather(*(client.receive() for client in clients))

                assert set(answers) == {f"ACK 1/1 FIN {DENIED}"}
                await asyncio.gather(*(client.close() for client in clients))

        run(main())

    def test_a_peer_that_reads_late_gets_every_answer(self):
        """Far more than socket buffers hold: the agent stops reading until its answers are taken."""

        async def main():
            gate = DictatedGate()
            gate.memory[check_message()] = ALLOW
            async with serving(gate) as server:
                client = await Client.connect(server.address)
                count = 30_000
                client.send(*(notify() for _ in range(count)))
                await until(lambda: server.stats.notifies > 0)

                for _ in range(count):
                    assert await client.receive() == f"ACK 1/1 FIN {ALLOWED}"
                await client.close()

        run(main())


class RecordingTransport(asyncio.Transport):
    """What the protocol asks of its transport."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def get_extra_info(self, name, default=None):
        return default

    def is_closing(self):
        return False

    def __getattribute__(self, name):
        if name in ("write", "pause_reading", "resume_reading", "write_eof", "close", "abort"):
            return lambda *arguments: self.calls.append((name, *map(len, arguments)))
        return super().__getattribute__(name)


class TestFlow:
    def peer(self, server):
        from iamroles_agent.server import _Peer

        transport, peer = RecordingTransport(), _Peer(server)
        peer.connection_made(transport)
        peer.data_received(hello())
        transport.calls.clear()
        return transport, peer

    def test_one_read_one_write(self):
        async def main():
            gate = DictatedGate()
            gate.memory[check_message()] = ALLOW
            async with serving(gate) as server:
                transport, peer = self.peer(server)
                peer.data_received(b"".join(notify(ids=(n, 1)) for n in range(50)))

                assert transport.calls == [("write", 50 * (11 + len(ALLOW)))]
                peer.connection_lost(None)

        run(main())

    def test_reading_stops_while_answers_are_not_taken(self):
        async def main():
            async with serving(DictatedGate()) as server:
                transport, peer = self.peer(server)
                peer.pause_writing()
                peer.pause_writing()
                peer.resume_writing()

                assert transport.calls == [("pause_reading",), ("resume_reading",)]
                peer.connection_lost(None)

        run(main())

    def test_half_closed_while_reading_is_paused(self, monkeypatch):
        monkeypatch.setattr("iamroles_agent.server.MAX_PENDING", 2)

        async def main():
            gone_on = asyncio.Event()

            async def judge(check):
                await gone_on.wait()
                return ALLOW

            gate = DictatedGate(judge)
            async with serving(gate) as server:
                client = await Client.connect(server.address)
                client.send(notify() * 3)
                client.half_close()
                await until(lambda: len(gate.asked) == 3)
                gone_on.set()

                assert await client.receive_all() == [f"ACK 1/1 FIN {ALLOWED}"] * 3
                await client.close()

        run(main())

    def test_reading_stops_while_too_much_is_under_way(self, monkeypatch):
        monkeypatch.setattr("iamroles_agent.server.MAX_PENDING", 2)

        async def main():
            gone_on = asyncio.Event()

            async def judge(check):
                await gone_on.wait()
                return DENY

            async with serving(DictatedGate(judge)) as server:
                transport, peer = self.peer(server)
                peer.data_received(notify() * 2)
                assert transport.calls == [("pause_reading",)]
                gone_on.set()
                await until(lambda: server.stats.judged == 2)

                assert ("resume_reading",) in transport.calls
                peer.connection_lost(None)

        run(main())


class TestDrain:
    def test_what_is_in_flight_is_answered(self):
        async def main():
            gone_on = asyncio.Event()

            async def judge(check):
                await gone_on.wait()
                return ALLOW

            gate = DictatedGate(judge)
            async with serving(gate) as server:
                client, idle = await Client.connect(server.address), await Client.connect(server.address)
                client.send(notify())
                await until(lambda: len(gate.asked) == 1)
                draining = asyncio.create_task(server.drain())

                assert await idle.receive_all() == [BYE]
                with pytest.raises(OSError):  # noqa: PT011 - refused or reset, as the kernel likes
                    await Client.connect(server.address)
                gone_on.set()
                assert await client.receive_all() == [f"ACK 1/1 FIN {ALLOWED}", BYE]
                for each in (client, idle):
                    await each.close()
                await draining

        run(main())

    def test_what_was_sent_before_is_answered(self):
        async def main():
            async with serving(DictatedGate()) as server:
                client = await Client.connect(server.address)
                client.send(notify())
                draining = asyncio.create_task(server.drain())

                assert await client.receive_all() == [f"ACK 1/1 FIN {DENIED}", BYE]
                await client.close()
                await draining

        run(main())

    def test_patience_ends_with_a_deny(self):
        async def main():
            async def judge(check):
                await asyncio.Event().wait()

            gate = DictatedGate(judge)
            async with serving(gate, drain_timeout="100ms") as server:
                client = await Client.connect(server.address)
                client.send(notify())
                await until(lambda: len(gate.asked) == 1)
                draining = asyncio.create_task(server.drain())

                assert await client.receive_all() == [f"ACK 1/1 FIN {FAILED}", BYE]
                assert gate.details == ["the agent is stopping"]
                await client.close()
                await draining

        run(main())

    def test_a_peer_that_never_closes_does_not_hold_it_up(self):
        async def main():
            async with serving(DictatedGate()) as server:
                client = await Client.connect(server.address)
                await server.drain()

                assert await client.receive_all() == [BYE]
                await client.close()

        run(main())


def test_a_frame_that_haproxy_never_sends_is_named_in_the_log(caplog):
    async def main():
        async with serving(DictatedGate()) as server:
            client = await Client.connect(server.address)
            client.send(frame(FrameType.ACK, b"secret"))
            await client.receive_all()
            await client.close()

    with caplog.at_level(logging.WARNING):
        run(main())
    (record,) = caplog.records
    assert "ACK is not expected while READY (status 4)" in record.getMessage()
    assert record.getMessage().startswith("127.0.0.1:")
    assert "secret" not in record.getMessage()
