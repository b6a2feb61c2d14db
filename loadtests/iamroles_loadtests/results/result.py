"""`result.json`: what a run found, whole enough to be compared, plotted and repeated elsewhere."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jsonschema

from iamroles_loadtests.measuring.histogram import Histogram
from iamroles_loadtests.measuring.measurement import COUNTS, Played
from iamroles_loadtests.measuring.validity import doubts, stepped
from iamroles_loadtests.results.slo import Slo, judged
from iamroles_scenarios.traffic.polling import NANO

FORMAT = 2
"""Version of `result.json`; its schema is `result.schema.json`."""
SCHEMA = Path(__file__).with_name("result.schema.json")
_PACKAGES = ("haproxy-iam-roles", "locust", "gevent", "numpy", "uvloop", "cryptography")
_EXAMPLES = 20


class ResultError(Exception):
    """A file is not the result of a load run."""


def assembled(
    *,
    target: Mapping[str, Any],
    asked: Mapping[str, Any],
    reproduce: str,
    slo: Slo,
    phases: Sequence[Played],
    played: Sequence[Played],
    knee: Mapping[str, Any] | None = None,
    pairs: Mapping[str, Any] | None = None,
    events: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Put a result together.

    Args:
        target: what was measured.
        asked: the options of the run.
        reproduce: the command that makes it again.
        slo: what it is held to.
        phases: levels and shapes.
        played: all that was played, whose verdicts count.
        knee: see `Conductor.knee`.
        pairs: see `Conductor.pairs`.
        events: what happened meanwhile: `at` (epoch seconds) and `what`.
    """
    why = [doubt for phase in phases for doubt in doubts(phase, slo.generator)]
    # Of steps and rounds only the clock counts: they are many, short, and compared with each other.
    why += [step for one in played if one not in phases for step in stepped(one)]
    result: dict[str, Any] = {
        "format": FORMAT,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "valid": not why,
        "doubts": why,
        "target": dict(target),
        "environment": environment(),
        "asked": dict(asked),
        "reproduce": reproduce,
        **{
            name: sum(getattr(one.measured, name) for one in played)
            for name in ("answers", "wrong", "faults", "stray")
        },
        "examples": list(dict.fromkeys(example for one in played for example in one.examples))[:_EXAMPLES],
        "knee": knee,
        "phases": [phase_entry(phase) for phase in phases],
        "pairs": pairs,
        "events": list(events),
    }
    objectives = judged(slo, result)
    result["objectives"] = [asdict(objective) for objective in objectives]
    result["met"] = all(objective.met for objective in objectives)
    return result


def phase_entry(played: Played) -> dict[str, Any]:
    """Make the entry of a phase: counts, and summaries beside histograms."""
    measured, phase = played.measured, played.phase
    return {
        "name": phase.name,
        "begin": measured.begin / NANO,
        "closed": phase.closed,
        **{name: getattr(measured, name) for name in ("seconds", "stamped", "samples", *COUNTS)},
        "stalls": [list(stall) for stall in measured.stalls],
        "steps": measured.steps,
        **{name: getattr(measured, name).shown() for name in ("lag", "punctual", "noticed")},
        "role": played.role,
        "rate": round(phase.rate, 3),
        "answered": played.answered,
        "generator_busy": played.busy,
        "cpu": played.cpu,
        "connections": phase.connections,
        "in_flight": phase.in_flight,
        **{name: measured.whole(name).shown() for name in ("due", "sent")},
        "cases": {
            name: {
                "samples": case.sent.count,
                "wrong": case.wrong,
                "faults": case.faults,
                "due": case.due.shown(),
                "sent": case.sent.shown(),
            }
            for name, case in measured.cases.items()
        },
        "windows": [
            {
                "at": round(number * measured.width, 4),
                "seconds": round(measured.width, 4),
                "samples": window.due.count,
                "due": window.due.summary(),
                "sent": window.sent.shown(),
            }
            for number, window in measured.all_windows().items()
        ],
    }


def environment() -> dict[str, Any]:
    """Describe the machine."""
    packages = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "system": platform.system(),
        "python": platform.python_version(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "packages": packages,
    }


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model"):
                return value.strip()
    return platform.machine()


def load(path: Path) -> dict[str, Any]:
    """Read a result: `result.json`, or a directory that holds one.

    Raises:
        ResultError: it is invalid, or of another version.
    """
    file = path / "result.json" if path.is_dir() else path
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ResultError(f"{file}: cannot be read as a result: {error}") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ResultError(f"{file}: not a result of `iamroles load run` in format {FORMAT}")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    for wrong in jsonschema.Draft202012Validator(schema).iter_errors(result):
        raise ResultError(f"{file}: {wrong.json_path}: {wrong.message[:200]}. Measure again, or repair it.")
    for where, text in _histograms(result, "$"):
        try:
            Histogram.decoded(text)
        except ValueError as error:
            raise ResultError(f"{file}: {where}: {error}. Measure again, or repair it.") from error
    return result


def _histograms(value: object, path: str) -> Iterator[tuple[str, str]]:
    """Every histogram in a result, and where it is."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "histogram":
                yield f"{path}.{name}", inner
            else:
                yield from _histograms(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _histograms(inner, f"{path}[{number}]")
