"""`result.json`: what a run found, whole enough to be compared, plotted and repeated elsewhere."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jsonschema

from iamroles_loadtests.measuring.conductor import timestamp, whole
from iamroles_loadtests.measuring.histogram import Histogram
from iamroles_loadtests.measuring.validity import doubts
from iamroles_loadtests.results.slo import Slo, judged

FORMAT = 2
"""Version of `result.json`; its schema is `result.schema.json`."""
SCHEMA = Path(__file__).with_name("result.schema.json")
_PACKAGES = ("haproxy-iam-roles", "locust", "gevent", "numpy", "uvloop", "cryptography")
_EXAMPLES = 20


class ResultError(Exception):
    """A file is no result of a load run."""


def assembled(
    *,
    target: Mapping[str, Any],
    asked: Mapping[str, Any],
    reproduce: str,
    slo: Slo,
    phases: Sequence[dict[str, Any]],
    measured: Sequence[Mapping[str, Any]],
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
        phases: levels and shapes, as `Conductor.play` gives them.
        measured: everything that was played: its verdicts count.
        knee: see `Conductor.knee`.
        pairs: see `Conductor.pairs`.
        events: what happened meanwhile: `at` (epoch seconds) and `what`.
    """
    why = [doubt for phase in phases for doubt in doubts(phase, slo.generator)]
    # Of steps and rounds only the clock counts: they are many, short, and compared with each other.
    why += [
        f"{played['name']}: the clock stepped by {step:g} ms"
        for played in measured
        if played not in phases
        for step in played["steps"]
    ]
    result: dict[str, Any] = {
        "format": FORMAT,
        "at": timestamp(),
        "valid": not why,
        "doubts": why,
        "target": dict(target),
        "environment": environment(),
        "asked": dict(asked),
        "reproduce": reproduce,
        **{
            name: sum(played[name] for played in measured) for name in ("answers", "wrong", "faults", "stray")
        },
        "examples": _examples(measured),
        "knee": None if knee is None else dict(knee),
        "phases": [_phase(phase) for phase in phases],
        "pairs": None if pairs is None else dict(pairs),
        "events": [dict(event) for event in events],
    }
    objectives = judged(slo, result)
    result["objectives"] = [objective.as_dict() for objective in objectives]
    result["met"] = all(objective.met for objective in objectives)
    return result


def _examples(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    found = dict.fromkeys(
        f"{name}: {example}"
        for played in measured
        for name, case in played["cases"].items()
        for example in case["examples"]
    )
    found |= dict.fromkeys(example for played in measured for example in played["examples"])
    return list(found)[:_EXAMPLES]


def _phase(played: Mapping[str, Any]) -> dict[str, Any]:
    """A phase with summaries beside its histograms."""
    found = {
        name: value for name, value in played.items() if name not in ("cases", "windows", "examples", "until")
    }
    for name in ("due", "sent"):
        found[name] = shown(whole(played, name))
    for name in ("lag", "punctual", "noticed"):
        found[name] = shown(Histogram.decoded(played[name]))
    found["cases"] = {
        name: {
            "samples": case["samples"],
            "wrong": case["wrong"],
            "faults": case["faults"],
            "due": shown(Histogram.decoded(case["due"])),
            "sent": shown(Histogram.decoded(case["sent"])),
        }
        for name, case in played["cases"].items()
    }
    found["windows"] = [
        {
            **window,
            "due": Histogram.decoded(window["due"]).summary(),
            "sent": shown(Histogram.decoded(window["sent"])),
        }
        for window in played["windows"]
    ]
    return found


def shown(histogram: Histogram) -> dict[str, Any]:
    """A summary in microseconds, and the histogram itself in nanoseconds."""
    return {**histogram.summary(), "histogram": histogram.encoded()}


def environment() -> dict[str, Any]:
    """What a reader must know of the machine."""
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
        ResultError: it is none, or of another version.
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
    for place, text in _histograms(result, "$"):
        try:
            Histogram.decoded(text)
        except ValueError as error:
            raise ResultError(f"{file}: {place}: {error}. Measure again, or repair it.") from error
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
