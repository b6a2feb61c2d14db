"""Runs locust on a target, in a process of its own, and brings back what it measured."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from iamroles_loadtests.asking.cpu import CpuMeter
from iamroles_loadtests.asking.plan import Plan
from iamroles_loadtests.asking.targets import LIFE, Target
from iamroles_loadtests.measuring.generator import GeneratorError
from iamroles_loadtests.measuring.measurement import Measurement, Played
from iamroles_scenarios.stage.guard import Guard

_LOCUSTFILE = Path(__file__).parents[1] / "locusting/locustfile.py"
_GRACE = 10.0
"""Seconds that an interrupted locust has for its report."""
_WRONG = 1
"""Locust's exit code after failed requests."""


def hosted(target: Target, phase: Mapping[str, Any], arguments: Sequence[str]) -> Played:
    """Run locust until it ends.

    Args:
        target: what is measured.
        phase: what all users do together (`plan.Phase`), without address and questions.
        arguments: locust's own.

    Raises:
        GeneratorError: locust left no result, or did not end before its tokens did.
    """
    whole, cpu = target.phase(**phase), CpuMeter(target.parts)
    with tempfile.TemporaryDirectory(prefix="iamroles-load-") as directory:
        plan, result = Path(directory, "plan.json"), Path(directory, "result.json")
        plan.touch(0o600)  # it holds tokens
        plan.write_text(Plan(pools=target.pools, phase=whole).model_dump_json(), encoding="utf-8")
        environment = {**os.environ, "IAMROLES_LOAD_PLAN": str(plan), "IAMROLES_LOAD_RESULT": str(result)}
        before = cpu.read()
        guard = Guard()
        locust: subprocess.Popen[bytes] = guard.start(
            subprocess.Popen,
            [sys.executable, "-m", "locust", "-f", str(_LOCUSTFILE), *arguments],
            env=environment,
            start_new_session=True,  # a group to kill, whose terminal does not stop it
        )
        try:
            code = locust.wait(LIFE - 60 if target.world else None)
        except subprocess.TimeoutExpired as error:
            raise GeneratorError(f"locust was ended: its tokens live {LIFE:,.0f} s; give it -t") from error
        except KeyboardInterrupt:
            locust.terminate()  # it says what it has
            with suppress(subprocess.TimeoutExpired):
                locust.wait(_GRACE)
            raise
        finally:
            guard.close()  # a locust that had no time to end its workers leaves them behind
        used = cpu.since(before)
        if code not in (0, _WRONG) or not result.is_file():
            raise GeneratorError(f"locust ended with exit code {code} and no result")
        measured = Measurement.model_validate_json(result.read_bytes())
    if not measured.answers and not measured.faults:
        raise GeneratorError("locust sent no request: did it have users?")
    return Played(whole, "level", measured, used)
