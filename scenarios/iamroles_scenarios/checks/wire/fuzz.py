"""Wire check: the fuzzer, a short run of it. `iamroles conformance fuzz` is the long one."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from iamroles_scenarios.base.errors import CheckFailed, Evidence
from iamroles_scenarios.checks.wire.teardown import launched
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.wire.fuzz import FuzzReport, fuzz
from iamroles_scenarios.wire.target import WireTarget

_COUNT = 1200
_DRAWN = 20.0
"""Seconds, times the scale, in which the suite must have drawn its inputs; it takes two."""


@check("wire.fuzz.survives", "SPOP-FUZZ-001")
async def survives(target: WireTarget) -> str:
    """Broken inputs of every kind leave the agent alive, bounded and right.

    On an agent of its own where the suite can start one: a crash must not blame other checks.
    """
    if target.launch is None:
        return _judged(await fuzz(target, count=_COUNT, drawn_within=target.seconds(_DRAWN)))
    async with launched(target, {}) as process:
        alone = replace(target, address=process.spop_address, pid=process.host_pid, logs=process.logs)
        return _judged(await fuzz(alone, count=_COUNT, drawn_within=target.seconds(_DRAWN)))


def _judged(report: FuzzReport) -> str:
    if report.failure:
        try:
            number, path = tempfile.mkstemp(".json", "iamroles-fuzz-")
            os.close(number)
            report.save(Path(path))
            kept = f"kept: iamroles conformance fuzz --replay {path}"
        except OSError as error:
            kept = f"not kept: {error}"
        raise CheckFailed(
            f"after {report.sent} inputs: {report.failure}",
            Evidence(
                sent="\n".join(one.raw.hex() for one in report.suspects),
                expected="the right answer to the good request behind each input, or an end",
                received=kept,
            ),
        )
    return f"{report.sent} inputs: {report.answered} survived by their connection, {report.ended} ended it"
