"""Timelines: what a scenario file may say, and how answers are judged that came while things changed."""

import ssl
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from listening import listening

from iamroles_scenarios.base.errors import DocumentError, HttpFault, TooSlow
from iamroles_scenarios.declarations.documents import parse
from iamroles_scenarios.declarations.scenario import Expectation, RequestSpec, Scenario
from iamroles_scenarios.declarations.timeline import WindowSpec
from iamroles_scenarios.engine.background_load import BackgroundLoad
from iamroles_scenarios.engine.certificates import ProxyCertificates
from iamroles_scenarios.engine.judged_traffic import JudgedTraffic, StepTimes
from iamroles_scenarios.engine.ledger import NEVER, Flow, FlowQuestion, Kind, Ledger, Outcomes
from iamroles_scenarios.engine.players import asked_for
from iamroles_scenarios.traffic import Case, Right
from iamroles_scenarios.traffic.polling import NANO

OPEN = Expectation(status=200, allow=True, backend="orders")
SHUT = Expectation(status=403, allow=False)
ALLOWED = b'HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{"backend": "orders", "headers": [], "path": "/"}'
REFUSED = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n"
DOWN = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"

KEYS = 'keys = { issuer = "corp", do = "rotate" }'
RATE, UNTIL, AT = "rate = 10\n", 'until = "5s"\n', 'at = "1s"'
FILE = """
id = "fire.example"
title = "An example"
why = "Twenty characters and more."
world = { policy = "orders", own = true }
[tokens.one]
[checks.quiet]
title = "nothing goes wrong"
requirements = ["FIRE-KEY-001"]
lanes = ["gate"]
[traffic]
rate = 10
until = "5s"
[flows.reader]
request = { token = "one" }
expect = { status = 200 }
[[steps]]
name = "turn"
at = "1s"
keys = { issuer = "corp", do = "rotate" }
[[windows]]
check = "quiet"
between = ["turn", "end"]
"""


# --- files -------------------------------------------------------------------------------------------------


def test_a_timeline_is_read():
    scenario = parse(FILE, Scenario, "fire-example.toml")

    assert (scenario.lanes, scenario.windows[0].between) == (["gate"], ["turn", "end"])


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"turn", "', '"turm", "', "windows[0].between: 'turm' is not a step of the timeline: take"),
        (AT, 'at = "6s"', "steps[0].at: 6 s is not between 0 s"),
        ("rate = 10", "rate = 0", "traffic.rate: "),
        ('until = "5s"', 'until = "5"', "traffic.until: '5' is not a duration: write"),
        ("{ status = 200 }", '{ reason = "x" }', "flows.reader.expect: traffic is judged by what client and"),
        ('name = "turn"', 'name = "end"', "steps[0].name: 'end' is taken or begins with a digit: choose"),
        (AT, f"{AT}\nthen.writer = {{ status = 403 }}", "steps[0].then: 'writer' is not a flow: take"),
        ('"end"]', '"end"]\nflows = ["x"]', "windows[0].flows: 'x' is not a flow: take one of reader"),
        ('"end"]', '"end"]\np99 = 0.5', "windows[0].p99: "),
        (
            KEYS,
            'certificate = { by = "reload", check = "quiet" }',
            "steps[0].certificate: HAProxy shows none without TLS: add tls to [traffic]",
        ),
        (
            KEYS,
            'wait = { signer = "next" }',
            "steps[0].wait: no key signs then: add signed to [traffic], and",
        ),
        (
            f"{RATE}{UNTIL}",
            f'{RATE}tls = true\n{UNTIL}[[steps]]\nrequest = {{ token = "one" }}\n',
            "steps[0].request: HAProxy speaks TLS: make it a flow",
        ),
    ],
)
def test_what_is_wrong_is_named_with_file_line_key_and_remedy(old, new, told):
    text = FILE.replace(old, new)
    with pytest.raises(DocumentError) as caught:
        parse(text, Scenario, "fire-example.toml")

    at_fault = new.splitlines()[-1]
    line = next(number for number, found in enumerate(text.splitlines(), 1) if at_fault in found)
    assert str(caught.value).startswith(f"fire-example.toml:{line}: {told}")


def test_a_timeline_needs_traffic():
    with pytest.raises(DocumentError, match=r"flows: this is for timelines: add \[traffic\], or remove it"):
        parse(FILE.replace('[traffic]\nrate = 10\nuntil = "5s"\n', ""), Scenario, "fire-example.toml")


# --- judging -----------------------------------------------------------------------------------------------


def at(seconds):
    return round(seconds * NANO)


@pytest.fixture
def fire():
    """A fire that was never lit: a timeline of ten seconds in which a part was killed at 4 s."""
    made = JudgedTraffic(("127.0.0.1", 9), rate=1, connections=2)
    made.steps = {
        "begin": StepTimes("begin", 0),
        "kill": StepTimes("kill", at(4), at(4.1)),
        "end": StepTimes("end", at(10)),
    }
    return made


@pytest.fixture
def flow():
    return Flow("reader", RequestSpec(), OPEN)


def answering(fire, flow, dies=NEVER):
    """Return what puts answers into a fire's ledger."""
    question = FlowQuestion(Case("x"), b"GET / HTTP/1.1", Right(), flow=flow, ledger=fire.ledger, dies=dies)

    def answers(sent, received, text, times=1):
        for _ in range(times):
            if text[:4] == b"HTTP":
                question.judge(int(text[9:12]), text, at(sent), at(received))
            else:
                question.lost(at(sent), at(received), text.decode())

    return answers


@pytest.fixture
def answers(fire, flow):
    return answering(fire, flow)


def kinds(found):
    return [kind for _, kind, _ in found.bad]


def judged(fire, **window):
    return fire.judge(WindowSpec(check="x", **{"between": ["begin", "end"], **window}))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *((REFUSED, Kind.FALSE_DENY), (DOWN, Kind.FAULT), (b"closed", Kind.LOST)),
        (ALLOWED.replace(b"orders", b"others"), Kind.WRONG),
    ],
)
def test_an_answer_that_is_not_right_is_named_by_its_kind(fire, answers, text, kind):
    answers(1, 1.1, ALLOWED, times=20)
    answers(2, 2.1, text)

    assert kinds(judged(fire)) == [kind]


def test_while_a_change_happens_either_is_right_and_then_the_new_alone(fire, flow, answers):
    flow.change(SHUT, at(4), at(6))
    answers(1, 1.1, ALLOWED, times=20)
    answers(3.9, 4.05, REFUSED)
    answers(5.9, 5.95, ALLOWED)
    answers(5.9, 5.95, REFUSED)
    answers(6.1, 6.2, REFUSED)

    assert kinds(judged(fire)) == []
    answers(3.8, 3.9, REFUSED)
    answers(6.1, 6.2, ALLOWED)
    assert kinds(judged(fire)) == [Kind.FALSE_DENY, Kind.FALSE_ALLOW]


def test_a_dead_token_opens_nothing(fire, flow):
    answers = answering(fire, flow, dies=at(5))
    unauthorized = REFUSED.replace(b"403", b"401")
    answers(1, 1.1, ALLOWED, times=20)
    answers(4.9, 5.1, unauthorized)
    answers(4.9, 5.1, DOWN.replace(b"503", b"504"))
    answers(6, 6.1, unauthorized)
    answers(6, 6.1, ALLOWED)

    assert kinds(judged(fire)) == [Kind.FALSE_ALLOW]
    answers(6, 6.1, DOWN.replace(b"503", b"504"))
    assert kinds(judged(fire)) == [Kind.FALSE_ALLOW, Kind.FAULT]


def test_what_was_in_flight_when_a_part_was_killed_is_excused_and_no_more(fire, answers):
    answers(1, 1.1, ALLOWED, times=20)
    answers(3.9, 4.2, DOWN)
    answers(4.05, 4.2, b"closed")
    found = judged(fire, between=["begin", "end"], in_flight=["kill"])
    assert (found.bad, found.excused) == ([], {Kind.FAULT: 1, Kind.LOST: 1})

    answers(4.5, 4.6, DOWN)
    assert kinds(judged(fire, in_flight=["kill"])) == [Kind.FAULT]


def test_more_than_the_connections_can_not_have_been_in_flight(fire, answers):
    answers(3.9, 4.2, DOWN, times=3)
    answers(1, 1.1, ALLOWED, times=20)

    (problem,) = judged(fire, in_flight=["kill"]).problems
    assert problem.startswith("3 questions failed with a part that was killed, more than the 2")


def test_a_false_allow_is_never_excused(fire, flow, answers):
    flow.change(SHUT, 0, 0)
    answers(4.05, 4.2, ALLOWED, times=10)

    found = judged(fire, between=["kill", "end"], in_flight=["kill"], recovers="5s")
    assert kinds(found) == [Kind.FALSE_ALLOW] * 10


def test_recovery_is_measured_and_bounded(fire, answers):
    answers(5, 5.5, REFUSED)
    answers(7, 7.1, ALLOWED, times=20)
    found = judged(fire, between=["kill", "end"], recovers="2s")
    assert (found.problems, found.recovered) == ([], 1.5)

    assert kinds(judged(fire, between=["kill", "end"], recovers="500ms")) == [Kind.FALSE_DENY]
    fire.steps["kill"].end = at(4.6)
    assert kinds(judged(fire, between=["kill", "end"], recovers="500ms")) == [], "counted from the step's end"
    assert kinds(judged(fire, between=[4.0, "end"], recovers="500ms")) == [Kind.FALSE_DENY]

    answers(5, 5.5, DOWN)
    answers(5, 5.5, b"closed")
    assert kinds(judged(fire, between=["kill", "end"], recovers="2s")) == [Kind.FAULT, Kind.LOST]


def test_a_slow_window_is_held_against_the_quiet_one(fire, answers):
    answers(1, 3, ALLOWED, times=8)  # a cold agent waits for keys
    answers(2, 2.05, ALLOWED, times=100)
    answers(5, 5.9, ALLOWED, times=100)

    assert judged(fire, between=["kill", "end"], p99=20).problems == []
    (problem,) = judged(fire, between=["kill", "end"], p99=10).problems
    assert "p99 was 900 ms, more than 10 times the quiet 50.0 ms" in problem


def test_a_window_without_answers_says_nothing(fire, answers):
    answers(1, 1.1, ALLOWED, times=9)

    with pytest.raises(TooSlow, match="only 9 answers of reader between begin and end"):
        judged(fire, flows=["reader"])


def test_what_is_settled_can_be_taken_out(fire, answers):
    answers(1, 1.1, ALLOWED)
    answers(3, 3.1, ALLOWED)

    assert [entry.sent for entry in fire.ledger.take(at(2))] == [at(1)]
    assert [entry.sent for entry in fire.ledger.between(0, NEVER)] == [at(3)]


@pytest.mark.parametrize(("shown", "trusted"), [(0, True), (1, True), (2, False)])
def test_a_client_takes_the_certificate_that_is_shown_and_the_next_alone(tmp_path, shown, trusted):
    certificates = ProxyCertificates()
    pem = tmp_path / "site.pem"
    pem.write_text(certificates._turns[shown].pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = certificates.tls.wrap_bio(inward, outward)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    with pytest.raises(ssl.SSLWantReadError):
        server.wrap_bio(outward, inward, server_side=True).do_handshake()

    with nullcontext() if trusted else pytest.raises(ssl.SSLCertVerificationError):
        client.do_handshake()


# --- asking ------------------------------------------------------------------------------------------------


def test_a_flow_renews_its_tokens_and_lets_go_of_the_dead():
    fire = JudgedTraffic(("127.0.0.1", 9), rate=1, connections=1)
    now = time.time()
    lives = iter([(f"token-{number}", now + number - 5) for number in (1, 9)])
    fire.ask(Flow("reader", RequestSpec(token="one"), OPEN), mint=lambda: next(lives), renew=0.001)
    stream = fire._flows["reader"]
    assert [question.secret for question in stream.questions] == ["token-1"]

    stream.renew(stream._due)
    assert [question.secret for question in stream.questions] == ["token-9"]


def test_the_ledger_shows_no_token():
    flow = Flow("reader", RequestSpec(), OPEN)
    secret = "eyJ" + "x" * 100
    raw = f"GET / HTTP/1.1\r\nAuthorization: Bearer {secret}\r\n\r\n".encode()
    ledger = Ledger()
    question = FlowQuestion(Case("x"), raw, Right(), flow=flow, ledger=ledger, secret=secret)
    question.judge(403, REFUSED, 1, 2)
    question.lost(1, 2, "closed")

    for entry in ledger.between(0, 9):
        assert secret not in "".join(entry.shown)


def test_what_the_ledger_has_is_not_kept_twice():
    def refuse(connection):
        while connection.recv(65_536):
            connection.sendall(REFUSED)

    with listening(refuse) as address:
        host, port = address.split(":")
        fire = JudgedTraffic((host, int(port)), rate=0, connections=1)
        fire.ask(Flow("closed", RequestSpec(), SHUT))
        fire.start()
        fire.wait(50)
        fire.stop()

    assert len(fire._loop.records) <= 1


def test_a_world_that_is_gone_is_a_fault_of_the_harness():
    fire = JudgedTraffic(("127.0.0.1", 9), rate=100, connections=1, scale=0.01)
    fire._loop = SimpleNamespace(open=lambda *_, **__: None, start=lambda _: None, run=lambda _: 1 / 0)
    fire.ask(Flow("reader", RequestSpec(), OPEN))
    fire.start()

    with pytest.raises(Exception, match="the traffic broke off: ZeroDivisionError"):
        fire.wait(1)
    # Beside a run it is a fault, which keeps no other traffic and no world from their end.
    load, closed = BackgroundLoad(SimpleNamespace(), 1, 1.0), []
    load._flowing = dict.fromkeys((1, 2), (fire, Outcomes(fire.ledger, 0)))
    load._own = SimpleNamespace(close=lambda: closed.append(True))
    load.end()
    assert (len(load.faults), load.sound, closed) == (1, False, [True])


# --- asked again and again ---------------------------------------------------------------------------------


def test_a_request_that_its_change_ends_is_asked_again_but_not_for_ever():
    found = iter([HttpFault("closed"), "open", HttpFault("closed"), "shut"])

    def ask():
        if isinstance(seen := next(found, HttpFault("gone")), HttpFault):
            raise seen
        return seen

    asked = asked_for(ask, 60)
    assert (next(asked)[0], next(asked)[0]) == ("open", "shut")
    with pytest.raises(HttpFault, match="gone"):
        list(asked_for(ask, 0))
