"""The meter itself: it pays for stalls, does not blame the gate for its own lateness, judges every answer."""

import asyncio
import json
import threading
import time
from concurrent.futures import Future

import pytest

from iamroles_loadtests.ledger import Histogram, Ledger
from iamroles_loadtests.mix import Answer, Case, Plan, Question, cases, judge
from iamroles_loadtests.runner import generate
from iamroles_loadtests.slo import DEFAULT, Slo, cost, duration, judged
from iamroles_loadtests.slo import load as load_slo

PLAIN = Question(path="/", right=Answer(status=400))


class Server:
    """Answers 400 to everything; freezes once for `stall` seconds when `after` seconds have passed.

    Each answer keeps the whole server busy for `each` seconds.
    """

    def __init__(self, after: float, stall: float, each: float = 0.0) -> None:
        self._after, self._stall, self._each = after, stall, each
        self._address: Future[str] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        return self._address.result(10)

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self._first: float | None = None
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self._address.set_result(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await self._end.wait()
        server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                self._first = self._first or time.monotonic()
                if self._stall and time.monotonic() - self._first > self._after:
                    stall, self._stall = self._stall, 0.0
                    time.sleep(stall)  # noqa: ASYNC251 - the whole server stands still, as a frozen process
                if self._each:
                    time.sleep(self._each)  # noqa: ASYNC251
                writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


def plan(**more: object) -> Plan:
    settings = {"rate": 200.0, "users": 4, "duration": 3.0, "warmup": 0.3, "seed": 1}
    return Plan.model_validate(
        {**settings, "cases": [Case(name="plain", weight=1, questions=[PLAIN])], **more}
    )


def test_a_stall_is_paid_by_all_who_would_have_come():
    """Four users in a closed loop would see 4 slow answers in 600; arrivals by timetable see about 100."""
    with Server(after=1.2, stall=0.6) as url:
        ledger = generate(plan(), url)

    assert ledger["wrong"] == ledger["faults"] == 0
    assert ledger["latency"]["p90"] > 150_000
    assert ledger["service"]["p90"] < 150_000  # what a closed loop would have reported


def test_what_was_not_answered_is_a_fault_and_what_could_not_be_sent_is_owed():
    with Server(after=0.0, stall=5.0) as url:
        ledger = generate(plan(duration=1.0, warmup=0.0, patience=1.0), url)

    assert ledger["faults"] == 4  # one for each user
    assert ledger["owed"] > 100
    [share] = [found for found in judged(Slo(), _with_pair(ledger)) if "offered load" in found.name]
    assert not share.met


def test_a_gate_that_is_too_slow_for_the_load_leaves_requests_owed():
    """Twenty answers a second for four users who want two hundred: most are never sent."""
    with Server(after=0.0, stall=0.0, each=0.05) as url:
        ledger = generate(plan(duration=2.0), url)

    assert ledger["wrong"] == ledger["faults"] == 0
    assert ledger["owed"] > 200
    assert ledger["latency"]["p50"] > 300_000


def test_no_gate_at_all_is_counted_as_faults():
    ledger = generate(plan(rate=50.0, duration=1.0), "http://127.0.0.1:1")

    assert ledger["answers"] == 0
    assert ledger["faults"] > 10
    assert "refused" in ledger["examples"][0]["fault"].lower()


def test_poisson_arrivals_keep_the_offered_rate():
    with Server(after=0.0, stall=0.0) as url:
        ledger = generate(plan(), url)

    due = ledger["answers"] + ledger["owed"]
    assert 500 < due < 700  # 600 within four standard deviations


def test_a_wrong_answer_is_wrong():
    wrong = PLAIN.model_copy(update={"right": Answer(status=200, backend="orders-ro")})
    with Server(after=0.0, stall=0.0) as url:
        ledger = generate(plan(duration=1.0, cases=[Case(name="x", weight=1, questions=[wrong])]), url)

    assert ledger["wrong"] == ledger["answers"] > 0
    assert ledger["examples"][0]["wrong"] == "status 400 where 200 is right"


def echo(**more: str) -> bytes:
    tags = {"principal": "alice", "role": "arn", "rule": "R1"} | more
    headers = [["x-iam-" + name, value] for name, value in tags.items() if name != "backend"]
    return json.dumps({"backend": more.get("backend", "orders-ro"), "headers": headers}).encode()


OPEN = Question(
    path="/", right=Answer(status=200, backend="orders-ro", principal="alice", role="arn", rule="R1")
)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, echo(), ""),
        (403, b"", "status 403"),
        (200, echo(backend="export"), "backend 'export'"),
        (200, echo(principal="bob"), "principal 'bob'"),
        (200, echo(role="other"), "role 'other'"),
        (200, echo(rule="R2"), "rule 'R2'"),
        (200, b"hello", "not an echo backend's"),
        (200, b"{}", "not an echo backend's"),
    ],
)
def test_verdicts(status, body, said):
    found = judge(OPEN, status, "", body, sent=1.0, done=2.0)

    assert (said in found) if said else found == ""


def test_a_token_that_reaches_the_backend_is_wrong():
    body = json.loads(echo())
    body["headers"].append(["Authorization", "Bearer x"])

    assert judge(OPEN, 200, "", json.dumps(body).encode(), sent=1.0, done=2.0) == (
        "the token reached the backend"
    )


def test_the_challenge_counts():
    question = Question(path="/", right=Answer(status=401, error="invalid_token"))

    assert not judge(question, 401, 'Bearer realm="iam", error="invalid_token"', b"", sent=1.0, done=2.0)
    assert "challenge" in judge(question, 401, 'Bearer realm="iam"', b"", sent=1.0, done=2.0)


@pytest.mark.parametrize(
    ("sent", "done", "opened", "closed"),
    [(98.0, 99.9, True, False), (99.9, 100.1, True, True), (100.0, 100.1, False, True)],
)
def test_around_expiry(sent, done, opened, closed):
    later = Answer(status=401, error="invalid_token")
    question = OPEN.model_copy(update={"expires": 100, "afterwards": later})

    assert (judge(question, 200, "", echo(), sent=sent, done=done) == "") == opened
    assert (judge(question, 401, 'Bearer error="invalid_token"', b"", sent=sent, done=done) == "") == closed


def test_the_mix_has_fresh_tokens_enough_and_no_two_callers_share_one():
    minted: list[dict] = []

    def mint(recipe):
        minted.append(dict(recipe))
        return f"token-{len(minted)}"

    mix = {case.name: case for case in cases(mint, rate=100, duration=10, now=1000.0)}

    assert len(mix["first-use"].questions) == 20
    ends = [question.expires for question in mix["expiring"].questions]
    assert ends[0] > 1000
    assert ends[-1] > 1010
    holders = {}
    for question in mix["allowed-read"].questions:
        holders.setdefault(question.headers["Authorization"], set()).add(question.right.principal)
    assert {len(names) for names in holders.values()} == {1}


def test_histograms_keep_microseconds():
    found = Histogram()
    for seconds in (69e-6, 70e-6, 172e-6, 0.0, 3600.0):
        found.record(seconds)

    assert found.summary()["p50"] == 70
    assert found.summary()["max"] >= 59_900_000


def test_warm_up_is_judged_but_not_timed():
    ledger = Ledger(["x"], duration=60, warmup=30)
    ledger.begin()
    ledger.answer("x", latency=1.0, service=1.0, wrong="all of it")

    found = json.loads(ledger.as_json())
    assert found["wrong"] == 1
    assert found["latency"] == {"count": 0}


def _with_pair(ledger: dict) -> dict:
    case = {"latency": {"count": 0}, "service": {"count": 0}}
    ledger["cases"] |= {"not-asked": case, "refused-known": case}
    return ledger


def test_an_objective_without_samples_is_not_met():
    ledger = {"wrong": 0, "faults": 0, "owed": 0, "answers": 5, "latency": {"count": 0}}
    found = judged(
        Slo.model_validate({"latency": {"p99": "1s"}, "cases": {"absent": {"p50": "1s"}}}),
        _with_pair({**ledger, "cases": {}}),
    )

    assert [objective.name for objective in found if not objective.met] == ["latency p99", "absent p50"]


def test_the_cost_of_a_check_is_a_difference():
    ledger = {
        "cases": {
            "not-asked": {"service": {"p50": 500, "p99": 900}},
            "refused-known": {"service": {"p50": 740, "p99": 2000}},
        }
    }

    assert cost(ledger) == {"p50": 240, "p99": 1100}


def test_the_default_objectives_name_cases_that_exist():
    names = {case.name for case in cases(lambda _: "token", rate=1, duration=1)}

    assert set(load_slo(DEFAULT).cases) <= names


@pytest.mark.parametrize(
    ("value", "text"), [(740, "740 us"), (12_345, "12.3 ms"), (1_200_000, "1.2 s"), (-50, "-50 us")]
)
def test_durations_are_readable(value, text):
    assert duration(value) == text
