"""Locust users that offer load by a timetable and measure it themselves.

Run by `iamroles load run`, which sets the stage and writes the plan. By hand, against a gate that is already
there: `IAMROLES_LOAD_PLAN=plan.json IAMROLES_LOAD_RESULT=out.json locust -f locustfile.py --headless …`.

Why not locust's own numbers? It rounds each sample to whole milliseconds, where a check takes tens of
microseconds. And its users are a closed loop: while the gate stands still they wait politely, so a stall of
half a second costs each of them one bad sample out of thousands (coordinated omission). Hence:

- Arrivals are a Poisson process, fixed in advance by the seed. A request that starts late because the one
  before took too long is measured from when it *should* have started, so a stall is paid by all who would
  have come meanwhile.
- A request that starts late because this process woke up late (timers of its event loop have a resolution of
  one millisecond) is measured from when it did start: that is our fault, not the gate's. How late we are is
  reported as `generator`.
- Samples are microseconds, in HDR histograms: from `perf_counter_ns` before the request to after the body.
"""

from __future__ import annotations

import gc
import os
import random
import time
from pathlib import Path
from typing import Any, ClassVar

import gevent
from locust import FastHttpUser, events, task
from locust.env import Environment
from locust.runners import Runner

from iamroles_loadtests.ledger import Ledger
from iamroles_loadtests.mix import Case, Plan, Question, judge

PLAN = Plan.model_validate_json(Path(os.environ["IAMROLES_LOAD_PLAN"]).read_bytes())
LEDGER = Ledger([case.name for case in PLAN.cases], duration=PLAN.duration, warmup=PLAN.warmup)
_TICK = 0.01
"""Seconds between two looks at how late this process wakes."""
_MAX_SLEEP = 1.0
_USED: dict[str, int] = {}
"""How many questions of a case that asks each once are used up, by all users together."""


class Deck:
    """Deals questions by the weights of their cases."""

    def __init__(self, cases: list[Case], seed: int) -> None:
        self._cases = cases
        self._weights = [case.weight for case in cases]
        self._random = random.Random(seed)  # noqa: S311 - a timetable, not a secret

    def deal(self) -> tuple[Case, Question]:
        """The next case and question."""
        [index] = self._random.choices(range(len(self._cases)), self._weights)
        case = self._cases[index]
        if case.once:
            number = _USED.get(case.name, 0)
            if number < len(case.questions):
                _USED[case.name] = number + 1
                return case, case.questions[number]
            case = self._cases[(index + 1) % len(self._cases)]
        return case, self._random.choice(case.questions)

    def gap(self, rate: float) -> float:
        """Seconds until the next arrival of a Poisson process."""
        return self._random.expovariate(rate)


class GateUser(FastHttpUser):
    """One keep-alive connection to the gate, with its own part of the timetable."""

    network_timeout = 10.0
    connection_timeout = 5.0
    max_retries = 0
    max_redirects = 0
    all_users: ClassVar[list[GateUser]] = []
    asking = ""
    """The case that is under way; "" while none is."""

    def on_start(self) -> None:
        """Draw the first arrival."""
        self._deck = Deck(PLAN.cases, PLAN.seed * 10_007 + len(self.all_users))
        self.all_users.append(self)
        self._rate = PLAN.rate / PLAN.users
        self._free_at = 0.0
        self._due = time.perf_counter() + self._deck.gap(self._rate)

    def wait_time(self) -> float:
        """Seconds until the next arrival; 0 if it is past."""
        if LEDGER.over:
            return _MAX_SLEEP
        return max(0.0, min(_MAX_SLEEP, self._due - time.perf_counter()))

    def arrears(self, end: float) -> int:
        """How many requests were due before `end` and not sent."""
        count = 0
        while self._due < end:
            count += 1
            self._due += self._deck.gap(self._rate)
        return count

    @task
    def ask(self) -> None:
        """Ask what is due, judge the answer."""
        start = time.perf_counter()
        if self._due - start > _TICK or LEDGER.over:
            return  # slept in parts; or what is due from now on is owed
        due, self._due = self._due, self._due + self._deck.gap(self._rate)
        if not LEDGER.open:
            return  # not all users are there yet
        case, question = self._deck.deal()
        self.asking = case.name
        origin = due if self._free_at > due else start
        sent = time.time()
        began = time.perf_counter()
        with self.client.request(
            question.method,
            question.path,
            name=case.name,
            headers=question.headers,
            catch_response=True,
            allow_redirects=False,
        ) as answer:
            body = answer.content or b""
            self._free_at = end = time.perf_counter()
            self.asking = ""
            if not answer.status_code:
                fault = str(answer.error or "no answer")
                LEDGER.fault(case.name, fault)
                answer.failure(fault)
                return
            headers: Any = answer.headers or {}
            wrong = judge(
                question,
                answer.status_code,
                headers.get("WWW-Authenticate", ""),
                body,
                sent=sent,
                done=time.time(),
            )
            LEDGER.answer(case.name, latency=end - origin, service=end - began, wrong=wrong)
            if wrong:
                LEDGER.example(case.name, question, wrong)
                answer.failure(wrong)
            else:
                answer.success()


def _watch(runner: Runner) -> None:
    """Measure how late this process wakes, and end the run when its time is over.

    Its own clock ends it, not locust's `--run-time`, which begins before the users are there.
    """
    while LEDGER.open:
        due = time.perf_counter() + _TICK
        gevent.sleep(_TICK)  # type: ignore[no-untyped-call]
        LEDGER.late(max(0.0, time.perf_counter() - due))
    last = time.perf_counter() + PLAN.patience
    while any(user.asking for user in GateUser.all_users) and time.perf_counter() < last:
        gevent.sleep(_TICK)  # type: ignore[no-untyped-call]
    for user in GateUser.all_users:
        if user.asking:
            LEDGER.fault(user.asking, "no answer by the end of the run")
    LEDGER.owe(sum(user.arrears(LEDGER.end) for user in GateUser.all_users))
    Path(os.environ["IAMROLES_LOAD_RESULT"]).write_text(LEDGER.as_json(), encoding="utf-8")
    runner.quit()


def _prepare(environment: Environment, **_more: object) -> None:
    runner = environment.runner
    assert runner is not None  # noqa: S101 - headless locust has one

    def begin(user_count: int, **_more: object) -> None:  # noqa: ARG001 - locust's signature
        gc.collect()
        gc.freeze()
        LEDGER.begin()
        gevent.spawn(_watch, runner)  # type: ignore[no-untyped-call]

    environment.events.spawning_complete.add_listener(begin)  # type: ignore[no-untyped-call]


events.init.add_listener(_prepare)  # type: ignore[no-untyped-call]
