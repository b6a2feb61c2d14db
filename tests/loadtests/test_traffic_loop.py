"""The loop against servers that behave in every way a server can."""

import contextlib
import itertools
import ssl
import threading
from functools import partial
from types import SimpleNamespace

import pytest
from listening import listening, nowhere

from iamroles_loadtests.asking.plan import Ask, Phase
from iamroles_loadtests.measuring.drive import Driver
from iamroles_loadtests.measuring.measurement import Measurement
from iamroles_scenarios import traffic
from iamroles_scenarios.engine.certificates import ProxyCertificates
from iamroles_scenarios.traffic import Address, Case, HttpClient, Question, Right, Segment, arrivals
from iamroles_scenarios.traffic.polling import NANO, now
from iamroles_scenarios.wire.blunt import _set, ack
from iamroles_scenarios.wire.frames import Frame, FrameType, encode_kv, encode_message, prefixed

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
OKAY = Right(200)
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


CLOSE = b"<close>"


@contextlib.contextmanager
def serving(talk, tls=None):
    """A server that answers each request with what `talk(connection number, request number)` gives.

    None closes the connection; an answer that ends with CLOSE is sent and the connection closed.
    """
    connections = itertools.count()

    def serve(connection):
        number = next(connections)
        if tls is not None:
            connection = tls.wrap_socket(connection, server_side=True)
        for request in itertools.count():
            received = b""
            while not received.endswith(b"\r\n\r\n"):
                piece = connection.recv(65_536)
                if not piece:
                    return
                received += piece
            answer = talk(number, request)
            if answer is None:
                return
            connection.sendall(answer.removesuffix(CLOSE))
            if answer.endswith(CLOSE):
                return

    with listening(serve) as address:
        yield SimpleNamespace(address=address, connections=connections)


def drive(address, *, rate=200.0, seconds=0.5, clients=4, right=OKAY, patience=5.0, **more):
    """An open loop (rate 0: a closed one); returns the finished loop and its case."""
    case = Case("x")
    question = Question(case, more.pop("payload", GET), right)
    timetable = arrivals([Segment(seconds, rate)], constant=True) if rate else None
    loop = traffic.Loop(traffic.QuestionMix([(1.0, [question])]).questions(), timetable, patience=patience)
    kind = more.pop("kind", HttpClient)
    loop.open([kind(loop, Address.of(address), **more) for _ in range(clients)])
    loop.run(loop.start() + round(seconds * NANO))
    loop.finish()
    return loop, case


def ended(loop):
    """All that was due. A busy host leaves some of it in the queue at the end."""
    assert loop.tally.owed <= 80
    return loop.tally.answers + loop.tally.faults + loop.tally.owed


def test_an_open_loop_asks_what_is_due_and_stamps_it():
    with serving(lambda *_: OK) as server:
        loop, _ = drive(server.address)

    assert loop.tally.answers == len(loop.records) == 100
    assert loop.stamped
    tally = loop.tally
    assert (tally.wrong, tally.faults, tally.owed, tally.stray) == (0, 0, 0, 0)
    for _, due, sent, received, noticed, lag, reported in loop.records:
        assert due <= sent < received < noticed
        assert 0 <= lag <= sent - due
        assert reported == -1


def test_a_closed_loop_keeps_each_line_busy():
    with serving(lambda *_: OK) as server:
        loop, _ = drive(server.address, rate=0, seconds=0.2)
        assert next(server.connections) == 4

    assert loop.tally.answers > 50
    assert all(due == sent for _, due, sent, *_ in loop.records)


def test_wrong_answers_are_told():
    with serving(lambda *_: OK) as server:
        loop, case = drive(server.address, right=Right(403))
        assert case.examples[0] == "status 200 where 403 is right"
        assert loop.tally.wrong == loop.tally.answers == case.wrong == 100
        loop, case = drive(server.address, right=Right(200, holds=(b"alice",)))
        assert "lacks 'alice'" in case.examples[0]
        loop, case = drive(server.address, right=Right(200, lacks=(b"ok",)))
        assert "holds 'ok'" in case.examples[0]


def test_a_number_in_the_answer_is_recorded():
    with serving(lambda *_: b"HTTP/1.1 200 OK\r\nX-Took: 17\r\nContent-Length: 0\r\n\r\n") as server:
        loop, _ = drive(server.address, right=Right(200, marker=b"X-Took: "))

    assert {record[-1] for record in loop.records} == {17}


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok" + CLOSE,
        b"HTTP/1.0 200 OK\r\n\r\nok" + CLOSE,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        OK + CLOSE,
    ],
    ids=["close", "until-close", "chunked", "drops-idle"],
)
def test_whatever_ends_an_answer(answer):
    with serving(lambda *_: answer) as server:
        loop, _ = drive(server.address, right=Right(200, holds=(b"ok",)))

    assert ended(loop) == 100
    assert not loop.tally.wrong
    # A server that closes without a word may do so while the next request is on its way.
    assert loop.tally.faults <= (20 if answer == OK + CLOSE else 0)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "closed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok" + CLOSE, "closed"),
        (b"nonsense\r\n\r\n", "status line"),
    ],
)
def test_what_is_no_answer_is_a_fault(answer, said):
    with serving(lambda *_: answer) as server:
        loop, case = drive(server.address)

    assert ended(loop) == 100
    assert (loop.tally.faults, loop.tally.answers) == (case.faults, 0)
    assert any(said in example or "reset" in example for example in case.examples)


def test_no_server_is_faults():
    address = nowhere()
    loop, case = drive(address)

    assert loop.tally.answers == 0
    assert ended(loop) == 100
    assert "refused" in case.examples[0].lower()
    loop, case = drive(address, rate=0, seconds=0.1)
    assert 4 <= loop.tally.faults < 100  # it rests between two tries


def test_silence_is_a_fault_and_what_waits_for_it_is_owed():
    with serving(lambda *_: b"") as server:
        loop, _ = drive(server.address, seconds=0.3, patience=1.0)

    assert (loop.tally.faults, loop.tally.owed, loop.tally.answers) == (4, 56, 0)
    measured = Measurement()
    measured.finish(loop.tally, [], stamped=True)
    due = measured.whole("due")  # each counts with the time that it waited, and no lag is in it
    assert (due.counts == measured.punctual.counts).all()
    assert due.count == 56
    assert due.at(90) > 200_000


def test_patience_ends_within_a_run():
    with serving(lambda connection, _: b"" if connection < 4 else OK) as server:
        loop, case = drive(server.address, seconds=1.0, patience=0.2)

    assert (loop.tally.faults, loop.tally.answers) == (4, 196)
    assert case.examples[0] == "no answer within 0.2 s"


def test_more_than_was_asked_for_is_stray():
    with serving(lambda *_: OK + OK) as server:
        loop, _ = drive(server.address)

    assert loop.tally.stray >= 50
    assert "nobody asked" in loop.tally.examples[0]


@pytest.mark.parametrize(
    ("said", "counts"), [(OK, (0, 1)), (b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", (1, 0))]
)
def test_a_server_that_waited_in_vain_may_only_say_that(said, counts):
    with listening(lambda connection: connection.sendall(said)) as address:
        loop = traffic.Loop(iter(()), arrivals([]))
        loop.open([HttpClient(loop, Address.of(address))])
        while not loop.tally.lost + loop.tally.stray:
            loop.run(now() + NANO // 100)
        loop.finish()

    assert (loop.tally.lost, loop.tally.stray) == counts


@pytest.mark.parametrize("end", [b"", CLOSE, b"0\r\n\r\n"])
def test_streams_are_held_beside_the_rest(end):
    """Four streams without an end; if the server ends one, by its framing or not, that is a fault."""
    stream = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nevent\r\n"
    case = Case("stream", 1)
    endless = Question(case, b"GET /stream HTTP/1.1\r\n\r\n", Right(200, holds=(b"event",)), endless=True)
    with serving(lambda *_: OK) as server, serving(lambda *_: stream + end) as streams:
        plain = Question(Case("x"), GET, OKAY)
        loop = traffic.Loop(
            traffic.QuestionMix([(1.0, [plain])]).questions(), arrivals([Segment(1.0, 100)]), patience=0.3
        )
        loop.open([HttpClient(loop, Address.of(server.address)) for _ in range(2)])
        loop.hold([HttpClient(loop, Address.of(streams.address)) for _ in range(4)], endless)
        loop.run(loop.start() + NANO)
        loop.finish()

    assert loop.tally.wrong == 0
    assert loop.tally.answers > 50  # a stream outlives patience, and holds nobody up
    assert (loop.tally.held, case.faults) == ((0, 4) if end else (4, 0))
    assert {record[0] for record in loop.records} == {0}  # no stream's time is a latency


def test_a_stream_that_says_the_wrong_thing_is_wrong():
    stream = b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n"
    endless = Question(Case("stream"), GET, OKAY, endless=True)
    with serving(lambda *_: stream) as server:
        loop = traffic.Loop(traffic.QuestionMix([(1.0, [endless])]).questions(), arrivals([]))
        loop.hold([HttpClient(loop, Address.of(server.address))], endless)
        loop.run(now() + NANO // 5)
        loop.finish()

    assert (loop.tally.held, loop.tally.wrong) == (1, 1)


def test_a_connection_that_is_closed_while_others_open_is_idle_once():
    with listening(lambda _: None) as closing, serving(lambda *_: OK) as silent:
        loop = traffic.Loop(iter(()), arrivals([]))
        closed = HttpClient(loop, Address.of(closing))
        slow = HttpClient(loop, Address.of(silent.address), tls=ssl.create_default_context())
        loop.open([closed, slow], within=0.3)

    assert list(loop._idle) == [closed, slow]


def test_a_connection_for_each_request():
    with serving(lambda *_: OK) as server:
        loop, _ = drive(server.address, fresh=True)
        assert next(server.connections) >= loop.tally.answers

    assert ended(loop) == 100
    assert loop.tally.faults == loop.tally.lost == 0


def test_a_pool_of_questions_asked_once_must_last():
    pools = {name: [Ask(case=name, payload=GET.decode())] for name in ("mix", "new")}
    once = {"weights": {"mix": 1.0}, "once": "new", "once_share": 1.0, "timetable": [Segment(0.1, 100)]}
    with serving(lambda *_: OK) as server, pytest.raises(ValueError, match="x: the pool 'new',"):
        Driver(pools).play(Phase(name="x", address=server.address, **once))


def test_a_queue_pays_from_due_and_not_from_sent():
    """One client, answers that take 20 ms, 100 a second: half of what is due waits for the client."""
    pause = threading.Event()
    with serving(lambda *_: pause.wait(0.02) or OK) as server:
        loop, _ = drive(server.address, rate=100.0, clients=1)
    rows = list(loop.records)

    assert max(received - due for _, due, _, received, *_ in rows) > 100_000_000
    # What waited was sent when the client came free: no lag of the generator.
    assert sorted(row[5] for row in rows)[len(rows) // 2] < 5_000_000
    assert loop.tally.owed + loop.tally.answers == 50


def test_tls(tmp_path):
    certificates = ProxyCertificates()
    (tmp_path / "site.pem").write_text(certificates.files["site.pem"])
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(tmp_path / "site.pem")
    with serving(lambda *_: OK, server_side) as server:
        loop, _ = drive(server.address, rate=100.0, tls=certificates.tls)
        assert (ended(loop), loop.tally.faults, loop.stamped) == (50, 0, True)
        loop, _ = drive(server.address, rate=100.0, tls=certificates.tls, fresh=True)
        assert (ended(loop), loop.tally.faults) == (50, 0)
        loop, case = drive(server.address, rate=100.0, tls=ssl.create_default_context())
        assert (ended(loop), loop.tally.answers) == (50, 0)
        assert "TLS" in case.examples[0]


# --- SPOP ---


CONTEXT = encode_message("iam-context", {"request-id": "@" * 16})
spop = partial(drive, kind=traffic.SpopClient, payload=CONTEXT)


@contextlib.contextmanager
def speaking(status=200, talk=None):
    """An agent that answers NOTIFYs with `status` and `allow`; those of the same read last first."""
    seen = []

    def answer(frame):
        if frame.type == FrameType.HAPROXY_HELLO:
            payload = encode_kv({"version": "2.0", "max-frame-size": 16380, "capabilities": "pipelining"})
            return Frame(FrameType.AGENT_HELLO, payload=payload).encode()
        seen.append(frame)
        if talk is not None:
            return talk(frame)
        return ack(frame, _set("status", status) + _set("allow", status == 200))

    def serve(connection):
        received = b""
        while piece := connection.recv(65_536):
            received += piece
            answers = []
            while len(received) >= (end := 4 + int.from_bytes(received[:4], "big")) > 4:
                answers.append(answer(Frame.decode(received[4:end])))
                received = received[end:]
            connection.sendall(b"".join(reversed(answers)))

    with listening(serve) as address:
        yield SimpleNamespace(address=address, seen=seen)


@pytest.mark.parametrize("in_flight", [1, 16])
def test_spop(in_flight):
    options = {"right": Right(200, holds=(b"allow=true\n",)), "in_flight": in_flight}
    with speaking() as agent:
        loop, case = spop(agent.address, **options)
        assert (loop.tally.answers, loop.tally.wrong, loop.tally.faults) == (100, 0, 0), case.examples
        assert loop.stamped == (in_flight == 1)
        loop, _ = spop(agent.address, **options, rate=0, seconds=0.2)
        assert loop.tally.answers > 100
        assert loop.tally.wrong == loop.tally.faults == 0
    numbers = [frame.payload for frame in agent.seen]
    assert len(set(numbers)) == len(numbers)  # each has a request-id of its own
    # Those of a client begin anywhere: forked processes have no common count.
    assert len({number[-16:-10] for number in numbers}) == 8


def test_spop_wrong_verdicts_are_told():
    with speaking(status=403) as agent:
        loop, case = spop(agent.address, in_flight=4)

    assert loop.tally.wrong == loop.tally.answers == 100
    assert case.examples[0] == "status 403 where 200 is right"


GOODBYE = encode_kv({"status-code": 3, "message": "x"})


@pytest.mark.parametrize(
    ("talk", "said"),
    [
        (lambda frame: Frame(FrameType.ACK, frame.stream_id + 5000, 1).encode(), "nothing that was asked"),
        (lambda frame: prefixed(b"\x67"), "malformed"),
        (lambda frame: Frame(FrameType.ACK, frame.stream_id, 1, b"\x09").encode(), "malformed"),
        (lambda frame: Frame(FrameType.AGENT_DISCONNECT, payload=GOODBYE).encode(), "frame is too big"),
        (lambda frame: b"\x7f\xff\xff\xff", "malformed"),
    ],
)
def test_spop_faults(talk, said):
    with speaking(talk=talk) as agent:
        loop, case = spop(agent.address, in_flight=2, rate=100.0, clients=2)

    assert (ended(loop), loop.tally.answers) == (50, 0)
    assert any(said in example for example in case.examples)


# --- the timetable ---


def test_a_timetable_keeps_its_rates():
    segments = [Segment(10, 100), Segment(10, 100, 300), Segment(5, 1000)]
    due = list(arrivals(segments, seed=3))

    assert due == sorted(due)
    spans = ((0, 10), (10, 20), (20, 25))
    counts = [sum(low * NANO <= at < high * NANO for at in due) for low, high in spans]
    for count, expected in zip(counts, (1000, 2000, 5000), strict=True):
        assert abs(count - expected) < 5 * expected**0.5
    assert due == list(arrivals(segments, seed=3)) != list(arrivals(segments, seed=4))


def test_a_constant_timetable_has_even_gaps():
    due = list(arrivals([Segment(10, 300)], constant=True))

    assert len(due) == 3000
    assert {round((b - a) / 1000) for a, b in itertools.pairwise(due)} == {3333}


def test_a_frozen_generator_counts_its_stall():
    with serving(lambda *_: OK) as server:
        mix = traffic.QuestionMix([(1.0, [Question(Case("x"), GET, Right())])])
        loop = traffic.Loop(mix.questions(), arrivals([Segment(0.3, 100)]))
        loop.open([HttpClient(loop, Address.of(server.address))])
        loop.start()
        loop.run(now() + 50_000_000)
        threading.Event().wait(0.1)  # whatever kept it: here the test itself
        loop.run(now() + 50_000_000)
        loop.finish()

    assert max(took for _, took in loop.tally.stalls) >= 90_000_000
