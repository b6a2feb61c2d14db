"""For `locust -f`: traffic by a plan, or against any URL.

`iamroles load locust` writes the plan and starts locust. By hand, against anything that speaks HTTP/1.1:

    IAMROLES_LOAD_RATE=2000 locust -f locustfile.py --headless -u 1 -t 10s --host http://127.0.0.1:8080/

`IAMROLES_LOAD_PLAN` names a JSON file, a `plan.Plan`. Without it the one question is GET of the host;
`IAMROLES_LOAD_RATE` is requests a second (left out: a closed loop), `IAMROLES_LOAD_CONNECTIONS` the
connections, of all users together.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from locust import events
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from iamroles_loadtests.asking.plan import Phase, Plan
from iamroles_loadtests.asking.targets import url
from iamroles_loadtests.locusting.users import TrafficUser
from iamroles_scenarios.traffic import Segment

_PLAN = "traffic-plan"
"""Type of the messages in which a worker asks for its plan, and the master sends it, as JSON."""
_LONG = 10_000_000.0
"""Seconds of a timetable that locust ends."""


class Traffic(TrafficUser):
    """The plan's traffic, divided among the users."""

    host = "http://127.0.0.1:8080/"


def _plan(environment: Environment, **_more: object) -> None:
    """Divide the plan when a test begins: only then does locust's page say among how many users.

    A worker, which may be on another machine, gets it from the master, and asks for it in case it comes late.
    """
    runner: Any = environment.runner
    if isinstance(runner, WorkerRunner):
        runner.register_message(_PLAN, lambda msg, **_more: _take(msg.data["plan"]))
        runner.send_message(_PLAN)
        return
    path = os.environ.get("IAMROLES_LOAD_PLAN")
    whole = Plan.model_validate_json(Path(path).read_bytes()) if path else _one(environment.host)
    message: dict[str, str] = {}

    def begin(**_more: object) -> None:
        phase = divided(whole.phase, max(1, runner.target_user_count))
        message["plan"] = whole.model_copy(update={"phase": phase}).model_dump_json()
        _take(message["plan"])
        if isinstance(runner, MasterRunner):
            runner.send_message(_PLAN, message)

    def late(msg: Any, **_more: object) -> None:  # noqa: ANN401 - locust's message
        if message:
            runner.send_message(_PLAN, message, msg.node_id)

    listeners: Any = environment.events
    listeners.test_start.add_listener(begin)
    if isinstance(runner, MasterRunner):
        runner.register_message(_PLAN, late)


def _take(plan: str) -> None:
    Traffic.plan = Plan.model_validate_json(plan)
    Traffic.planned.set()  # type: ignore[no-untyped-call]


def _one(host: str | None) -> Plan:
    """GET of a URL, again and again."""
    target = url(host or Traffic.host)
    rate = float(os.environ.get("IAMROLES_LOAD_RATE", "0"))
    phase = target.phase(
        name="locust",
        connections=int(os.environ.get("IAMROLES_LOAD_CONNECTIONS", "16")),
        timetable=[Segment(_LONG, rate)] if rate else [],
    )
    return Plan(pools=target.pools, phase=phase)


def divided(phase: Phase, users: int) -> Phase:
    """Give each user its share of the rate and of the connections."""
    segments = [
        Segment(
            _LONG if number == len(phase.timetable) else segment.seconds,
            segment.rate / users,
            None if segment.until is None else segment.until / users,
        )
        for number, segment in enumerate(phase.timetable, 1)
    ]
    return phase.model_copy(update={"timetable": segments, "connections": max(1, phase.connections // users)})


events.init.add_listener(_plan)  # type: ignore[no-untyped-call]
