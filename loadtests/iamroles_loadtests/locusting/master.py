"""The master in the compose file: `python -m iamroles_loadtests.locusting.master`, in its container.

It makes its tokens at the mock identity provider, waits until the gate lets one pass, lets locust conduct the
workers, and writes the report to /out. Its workers learn from it what to ask.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import urllib3

from iamroles_loadtests.asking.questions import Asking
from iamroles_loadtests.asking.targets import LIFE, Target
from iamroles_loadtests.measuring.generator import GeneratorError
from iamroles_loadtests.measuring.hosted import hosted
from iamroles_loadtests.pages import report
from iamroles_loadtests.results import result
from iamroles_loadtests.results.slo import Slo
from iamroles_scenarios.base.errors import ControlError
from iamroles_scenarios.mock.clients import IdpClient
from iamroles_scenarios.traffic import Segment

IDP, GATE = "http://idp:8000", "haproxy:8080"
_PATIENCE = 60.0
"""Seconds until the parts must be there."""


_FAILED = 3
"""Exit code where something other than what is measured failed; Python's own for a traceback means an SLO."""


def main() -> int:
    """See the module; returns the exit code of `iamroles load run`."""
    try:
        return _measured()
    except (ControlError, GeneratorError, OSError, urllib3.exceptions.HTTPError) as error:
        sys.stderr.write(f"iamroles load: {error}\n")
        return _FAILED


def _measured() -> int:
    rate, seconds = float(os.environ["IAMROLES_RATE"]), int(os.environ["IAMROLES_DURATION"])
    workers, haproxy = os.environ["IAMROLES_WORKERS"], os.environ["IAMROLES_HAPROXY"]
    issuer = _patiently(lambda: IdpClient(IDP, IDP).issuer("corp"))
    issuer.add_key("RS256")
    asking = Asking(issuer.mint, life=LIFE)
    _patiently(lambda: _open(asking))
    about = {
        "kind": "stage",
        "stage": "containers",
        "address": GATE,
        "haproxy": haproxy,
        "agent": {"name": f"two agents, {workers} locust workers", "version": ""},
    }
    target = Target(GATE, {"mix": asking.mix(seconds + 60)}, about)
    phase: dict[str, Any] = {
        "name": "locust",
        "connections": int(os.environ["IAMROLES_CONNECTIONS"]),
        "timetable": [Segment(1.0, rate)] if rate else [],
    }
    arguments = ["--master", "--headless", "--only-summary", "--expect-workers", workers]
    arguments += ["--expect-workers-max-wait", str(int(_PATIENCE))]
    arguments += ["-u", workers, "-r", workers, "-t", f"{seconds}s", "--csv", "/out/locust"]
    played = hosted(target, phase, arguments)
    found = result.assembled(
        target=about,
        asked={
            "rate": rate,
            "duration": seconds,
            "workers": int(workers),
            "connections": phase["connections"],
        },
        reproduce=f"iamroles load compose --rate {rate:g} --duration {seconds} --workers {workers} "
        f"--connections {phase['connections']} --haproxy {haproxy}",
        slo=Slo(),
        phases=[played],
        played=[played],
    )
    report.write(found, Path("/out"))
    sys.stdout.write(Path("/out/summary.txt").read_text(encoding="utf-8"))
    return 0 if found["met"] and found["valid"] else 1 if not found["met"] else 4


def _open(asking: Asking) -> None:
    """One request that must pass: HAProxy, an agent and its keys are there."""
    token = asking.token("first", "reader")
    answer = urllib3.request(
        "GET",
        f"http://{GATE}/orders/1",
        headers={"Authorization": f"Bearer {token}"},
        retries=False,
        timeout=5.0,
    )
    if answer.status != 200:
        raise ControlError(f"the gate answers {answer.status}")


def _patiently(act: Any) -> Any:  # noqa: ANN401 - whatever it gives
    """Try until the parts are up."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return act()
        except (ControlError, urllib3.exceptions.HTTPError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
