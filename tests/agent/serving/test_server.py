"""The server on real sockets: order, failure, disappearance."""

import asyncio
import logging
from functools import partial

import pytest
import spop_transcript
from spop_client import Client, DictatedGate, HeldGate, descriptors, serving, talking, until
from spop_transcript import ALLOW, ALLOWED, DENIED, check_message, context_message, disconnect, hello, notify

from iamroles_agent.spop.frames import FrameType
from iamroles_agent.spop.values import DataType

TWICE = notify(context_message() + check_message() * 2)


def question(path, number=1):
    return notify(context_message() + check_message(path=(DataType.STRING, path.encode())), ids=(number, 1))


class TestAnswers:
    async def test_many_questions_in_one_segment(self):
        gate = DictatedGate(memory=spop_transcript.KNOWN)
        async with talking(gate) as (server, client):
            client.send(*(notify(ids=(n, 1)) for n in range(300)))

            for n in range(300):
                assert await client.receive() == f"ACK {n}/1 FIN {ALLOWED}"
            assert (server.stats.notifies, server.stats.recalled, server.stats.judged) == (300, 300, 0)

    async def test_byte_by_byte(self):
        async with talking(DictatedGate(), greet=False) as (_, client):
            for byte in hello() + notify():
                client.send(bytes((byte,)))
                await asyncio.sleep(0)

            assert (await client.receive()).startswith("AGENT-HELLO")
            assert await client.receive() == f"ACK 1/1 FIN {DENIED}"

    async def test_the_gate_gets_the_key_that_it_will_be_asked_by(self):
        gate = DictatedGate()
        async with talking(gate) as (_, client):
            client.send(notify())
            await client.receive()
            assert gate.keys == [check_message()]
            gate.memory[gate.keys[0]] = ALLOW
            client.send(notify(context_message(b"r2", 999, None) + check_message(), ids=(3, 1)))

            assert await client.receive() == f"ACK 3/1 FIN {ALLOWED}"

    async def test_a_slow_question_delays_no_other(self):
        gone_on = asyncio.Event()

        async def judge(check):
            if check.path == "/slow":
                await gone_on.wait()
                return ALLOW
            return spop_transcript.DENY

        async with talking(DictatedGate(judge)) as (server, client):
            other = await Client.connect(server.address)
            client.send(question("/slow", 1), question("/quick", 3), notify(b"", ids=(5, 1)))
            other.send(question("/quick", 1))

            assert await client.receive() == "ACK 5/1 FIN (nothing)"
            assert await client.receive() == f"ACK 3/1 FIN {DENIED}"
            assert await other.receive() == f"ACK 1/1 FIN {DENIED}"
            gone_on.set()
            assert await client.receive() == f"ACK 1/1 FIN {ALLOWED}"
            await other.close()

    async def test_a_broken_connection_harms_no_other(self):
        async with talking(DictatedGate()) as (server, good):
            for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 5000, b"\x00" * 9, hello() + hello()):
                bad = await Client.connect(server.address, greet=False)
                bad.send(garbage)
                assert (await bad.receive_all())[-1].startswith("AGENT-DISCONNECT")
                await bad.close()
            good.send(notify())

            assert await good.receive() == f"ACK 1/1 FIN {DENIED}"
            assert server.stats.protocol_errors == 4

    async def test_unix_socket(self, tmp_path):
        path = tmp_path / "agent.sock"
        async with talking(DictatedGate(), listen=f"unix:{path}") as (server, client):
            assert server.address == f"unix:{path}"
            client.send(notify())

            assert await client.receive() == f"ACK 1/1 FIN {DENIED}"
        assert not path.exists()

    async def test_ipv6(self):
        try:
            async with serving(DictatedGate(), listen="[::1]:0") as server:
                assert server.address.startswith("[::1]:")
                await (await Client.connect(server.address)).close()
        except OSError as error:  # pragma: no cover
            pytest.skip(f"this host has no IPv6: {error}")


class TestFailures:
    @pytest.mark.parametrize(
        ("fault", "detail"),
        [
            (ValueError("secret"), "the decision failed: ValueError"),
            (asyncio.CancelledError(), "the decision was cancelled"),
            (RecursionError(), "the decision failed: RecursionError"),
        ],
    )
    async def test_a_decision_that_fails_is_a_deny(self, fault, detail):
        async def judge(check):
            raise fault

        gate = DictatedGate(judge)
        async with talking(gate) as (server, client):
            client.send(notify())

            assert await client.receive() == f"ACK 1/1 FIN {spop_transcript.FAILED}"
            assert (gate.details, server.stats.failed) == ([detail], 1)

    @pytest.mark.parametrize(
        ("broken", "answer"),
        [(["memory"], DENIED), (["asked", "details"], spop_transcript.FAILED)],
        ids=["a-memory-that-fails-is-no-memory", "even-failing-may-fail"],
    )
    async def test_a_gate_that_fails_is_a_deny(self, broken, answer):
        gate = DictatedGate()
        for name in broken:
            setattr(gate, name, None)
        async with talking(gate) as (_, client):
            client.send(notify())

            assert await client.receive() == f"ACK 1/1 FIN {answer}"

    @pytest.mark.parametrize(
        ("gate", "detail", "asked"),
        [
            (HeldGate, "no decision within 0.02 s", notify()),
            (partial(HeldGate, ALLOW + b"\x01\x03\x02" + b"x" * 20000), "", notify()),
            (
                partial(DictatedGate, memory=spop_transcript.KNOWN),
                "2 iam-check messages in one NOTIFY",
                TWICE,
            ),
        ],
        ids=["late", "an-answer-that-cannot-be-sent", "ambiguous"],
    )
    async def test_what_cannot_be_decided_is_a_deny(self, gate, detail, asked):
        made = gate()
        async with talking(made, decision_timeout="20ms") as (_, client):
            if not detail:
                made.gone_on.set()
            client.send(asked)

            assert await client.receive() == f"ACK 1/1 FIN {spop_transcript.FAILED}"
            assert not detail or made.details == [detail]


class TestDisappearance:
    async def test_a_peer_that_vanishes_leaves_no_task(self):
        ended = asyncio.Event()

        async def judge(check):
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        gate = DictatedGate(judge)
        async with serving(gate) as server:
            await (await Client.connect(server.address)).close()  # the loop keeps a descriptor from then on
            await until(lambda: not server.peers)
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

    async def test_a_peer_that_closes_while_its_question_is_judged(self):
        """A full close looks like a half-close: it is judged, and the lost answer raises nothing."""
        gate = HeldGate(ALLOW)
        async with serving(gate) as server:
            client = await Client.connect(server.address)
            client.send(notify() * 2)
            await until(lambda: len(gate.asked) == 2)
            await client.close()
            gate.gone_on.set()
            await until(lambda: not server.peers)

            assert (server.stats.pending, server.stats.judged) == (0, 2)

    async def test_half_closed_after_the_question(self):
        gate = HeldGate(ALLOW)
        async with talking(gate) as (server, client):
            client.send(notify(ids=(1, 1)), notify(ids=(3, 1)))
            client.half_close()
            await until(lambda: len(gate.asked) == 2)
            gate.gone_on.set()

            assert sorted(await client.receive_all()) == [f"ACK {n}/1 FIN {ALLOWED}" for n in (1, 3)]
            await until(lambda: not server.peers)

    @pytest.mark.parametrize("sent", [b"", notify()[:-3], b"\x00", *map(disconnect, range(3))])
    async def test_closed_or_disconnected_by_haproxy(self, sent, caplog):
        """A plain close is how HAProxy 3.1 and later end an idle connection: nothing to complain of."""
        goodbye = "AGENT-DISCONNECT 0/0 FIN status-code=0 message=b'goodbye'"
        disconnected = sent in map(disconnect, range(3))
        with caplog.at_level(logging.WARNING):
            async with talking(DictatedGate()) as (_, client):
                client.send(sent)
                if not disconnected:
                    client.half_close()

                assert await client.receive_all() == [goodbye] * disconnected
        assert caplog.records == []

    async def test_health_check(self):
        async with talking(DictatedGate(), greet=False) as (_, client):
            client.send(hello(healthcheck=(DataType.BOOL, True)))
            lines = await client.receive_all()

            assert [line.split()[0] for line in lines] == ["AGENT-HELLO"]

    async def test_the_reason_survives_a_peer_that_goes_on_sending(self):
        """Without the lingering close, what is unread turns our FIN into RST and the frame may be lost."""
        async with talking(DictatedGate()) as (server, client):
            client.send(b"\x7f\xff\xff\xff" + b"x" * 100_000)
            await until(lambda: server.stats.protocol_errors == 1)
            client.send(b"x" * 100_000)

            (line,) = await client.receive_all()
            assert line.startswith("AGENT-DISCONNECT 0/0 FIN status-code=3")

    async def test_a_peer_that_never_closes_is_closed(self):
        async with talking(DictatedGate()) as (server, client):
            client.send(disconnect())
            await client.receive_all()
            await until(lambda: not server.peers)


async def test_a_frame_that_haproxy_never_sends_is_named_in_the_log(caplog):
    with caplog.at_level(logging.WARNING):
        async with talking(DictatedGate()) as (_, client):
            client.send(spop_transcript.frame(FrameType.ACK, b"secret"))
            await client.receive_all()

    (record,) = caplog.records
    assert "ACK is not expected while READY (status 4)" in record.getMessage()
    assert record.getMessage().startswith("127.0.0.1:")
    assert "secret" not in record.getMessage()
