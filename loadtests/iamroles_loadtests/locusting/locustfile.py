"""For `locust -f`: traffic by a plan, or against any URL.

`iamroles load locust` writes the plan and starts locust. By hand, against anything that speaks HTTP/1.1:

    IAMROLES_LOAD_RATE=2000 locust -f locustfile.py --headless -u 1 -t 10s --host http://127.0.0.1:8080/

`IAMROLES_LOAD_PLAN` names a JSON file with `piles` (`plan.Piles`) and `phase` (`plan.Phase`). Without it the
one question is GET of the host; `IAMROLES_LOAD_RATE` is requests a second of all users together (none: a
closed loop), `IAMROLES_LOAD_CONNECTIONS` the connections of each user.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from locust import events
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from iamroles_loadtests.asking.plan import Phase, Piles, Stretch
from iamroles_loadtests.asking.targets import url
from iamroles_loadtests.locusting.users import TrafficUser

_PLAN = "traffic-plan"
"""Type of the messages in which a worker asks what to do, and the master tells it."""
_LONG = 10_000_000.0
"""Seconds of a timetable that locust ends."""


class Traffic(TrafficUser):
    """The plan's traffic, divided among the users."""

    host = "http://127.0.0.1:8080/"


def _plan(environment: Environment, **_more: object) -> None:
    """The plan of this process; a worker on another machine gets the master's."""
    options: Any = environment.parsed_options
    users = max(1, getattr(options, "num_users", None) or 1)
    runner: Any = environment.runner
    if isinstance(runner, WorkerRunner):
        runner.register_message(_PLAN, lambda msg, **_more: _take(msg.data))
        runner.send_message(_PLAN)
        return
    path = os.environ.get("IAMROLES_LOAD_PLAN")
    if path:
        found = json.loads(Path(path).read_bytes())
        piles, whole = Piles.model_validate(found["piles"]), Phase.model_validate(found["phase"])
    else:
        piles, whole = _one(environment.host or Traffic.host, users)
    plan = {"piles": piles.model_dump(), "phase": divided(whole, users).model_dump()}
    _take(plan)
    if isinstance(runner, MasterRunner):
        runner.register_message(_PLAN, lambda msg, **_more: runner.send_message(_PLAN, plan, msg.node_id))


def _take(plan: dict[str, Any]) -> None:
    Traffic.piles = Piles.model_validate(plan["piles"])
    Traffic.phase = Phase.model_validate(plan["phase"])
    Traffic.planned.set()  # type: ignore[no-untyped-call]


def _one(host: str, users: int) -> tuple[Piles, Phase]:
    """GET of a URL, again and again."""
    target = url(host)
    rate = float(os.environ.get("IAMROLES_LOAD_RATE", "0"))
    phase = Phase.model_validate({
        "name": "locust",
        "address": target.address,
        "tls": target.tls,
        "hands": {target.steady: 1.0},
        "connections": users * int(os.environ.get("IAMROLES_LOAD_CONNECTIONS", "16")),
        "timetable": [{"seconds": _LONG, "rate": rate}] if rate else [],
    })  # fmt: skip
    return target.piles, phase


def divided(phase: Phase, users: int) -> Phase:
    """What each of so many users does: its share of the rate and of the connections."""
    stretches = [
        Stretch(
            seconds=_LONG if number == len(phase.timetable) else stretch.seconds,
            rate=stretch.rate / users,
            until=None if stretch.until is None else stretch.until / users,
        )
        for number, stretch in enumerate(phase.timetable, 1)
    ]
    return phase.model_copy(
        update={"timetable": stretches, "connections": max(1, phase.connections // users)}
    )


events.init.add_listener(_plan)  # type: ignore[no-untyped-call]
