"""Runs locust on a target, in a process of its own, and brings back what it measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from iamroles_loadtests.asking.cpu import Meter
from iamroles_loadtests.asking.plan import Phase
from iamroles_loadtests.asking.targets import Target
from iamroles_loadtests.measuring.generator import GeneratorError
from iamroles_scenarios.stage.guard import Guard

_LOCUSTFILE = Path(__file__).parents[1] / "locusting/locustfile.py"
_GRACE = 10.0
"""Seconds that an interrupted locust has for its report."""
_WRONG = 1
"""Locust's exit code after failed requests."""


def hosted(target: Target, phase: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """Run locust until it ends.

    Args:
        target: what is measured.
        phase: what all users do together (`plan.Phase`), without address and questions.
        arguments: locust's own.

    Returns:
        As `Conductor.play`.

    Raises:
        GeneratorError: locust left no result.
    """
    whole = Phase.model_validate({
        **phase,
        "address": target.address,
        "lane": target.lane,
        "tls": target.tls,
        "hands": {target.steady: 1.0},
    })  # fmt: skip
    cpu = Meter(target.parts)
    with tempfile.TemporaryDirectory(prefix="iamroles-load-") as directory:
        plan, result = Path(directory, "plan.json"), Path(directory, "result.json")
        plan.touch(0o600)  # it holds tokens
        plan.write_text(json.dumps({"piles": target.piles.model_dump(), "phase": whole.model_dump()}))
        environment = {**os.environ, "IAMROLES_LOAD_PLAN": str(plan), "IAMROLES_LOAD_RESULT": str(result)}
        before, begun = cpu.read(), time.time()
        guard = Guard()
        locust: subprocess.Popen[bytes] = guard.start(
            subprocess.Popen,
            [sys.executable, "-m", "locust", "-f", str(_LOCUSTFILE), *arguments],
            env=environment,
            start_new_session=True,  # a group to kill, whose terminal does not stop it
        )
        try:
            code = locust.wait()
        except KeyboardInterrupt:
            locust.terminate()  # it says what it has
            with suppress(subprocess.TimeoutExpired):
                locust.wait(_GRACE)
            raise
        finally:
            guard.close()  # one that had no time to end its workers leaves them behind
        used = cpu.since(before)
        if code not in (0, _WRONG) or not result.is_file():
            raise GeneratorError(f"locust ended with exit code {code} and no result")
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if not found["answers"] and not found["faults"]:
        raise GeneratorError(f"locust sent no request in {time.time() - begun:.0f} s: did it have users?")
    answers = max(1, found["answers"])
    own = found.pop("cpu")
    rate = whole.timetable[0].rate if whole.timetable else 0.0
    return found | {
        "role": "level",
        "rate": rate,
        "answered": round(found["samples"] / max(1e-9, found["seconds"]), 3),
        "generator_busy": round(own / max(1e-9, found["seconds"]), 3),
        "cpu": {
            **{name: round(seconds / answers * 1e6, 3) for name, seconds in used.items()},
            "generator": round(own / answers * 1e6, 3),
        },
        "connections": whole.connections,
        "in_flight": whole.in_flight,
    }
