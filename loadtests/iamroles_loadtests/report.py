"""Results for people: one run in full, or several side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from iamroles_loadtests.mix import FLOOR, KNOWN
from iamroles_loadtests.runner import FORMAT
from iamroles_loadtests.slo import duration

_COLUMNS = ("p50", "p90", "p99", "p99.9", "max")
_NOISY = 5000
"""Microseconds; a generator that wakes so late at its p99 has a machine too busy to measure on."""


class ResultError(Exception):
    """A file is no result of a load run."""


def load(path: Path) -> dict[str, Any]:
    """Read a result: `result.json`, or a directory that holds one.

    Raises:
        ResultError: it is none, or of another version.
    """
    file = path / "result.json" if path.is_dir() else path
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"{file}: cannot be read as a result: {error}") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ResultError(f"{file}: not a result of `iamroles load run` in format {FORMAT}")
    return result


def write(result: dict[str, Any], directory: Path) -> Path:
    """Put `result.json` and `summary.txt` into a directory; returns the first."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "result.json"
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    with (directory / "summary.txt").open("w", encoding="utf-8") as stream:
        summary(result, Console(file=stream, width=100, no_color=True, highlight=False))
    return file


def summary(result: dict[str, Any], console: Console) -> None:
    """Print one run."""
    offered, stage = result["offered"], result["stage"]
    agent = f"{result['agent']['name']} {result['agent']['version']}".strip()
    console.print(
        f"[bold]{escape(agent)}[/] behind HAProxy {stage['haproxy']}, "
        f"{stage['kind']}, {result['machine']['cpus']} cores shared by all parts"
    )
    console.print(
        f"offered {offered['rate']:g}/s for {offered['duration']:g} s by {offered['users']} connections; "
        f"answered {result['rate']:g}/s: {result['answers']} verdicts, "
        f"[{'red' if result['wrong'] else 'green'}]{result['wrong']} wrong[/], "
        f"{result['faults']} without answer, {result['owed']} never sent"
    )
    console.print(_cases(result))
    check = result["check_cost"]
    if "p50" in check:
        console.print(
            f"A remembered check costs [bold]{duration(check['p50'])}[/] at the median: {KNOWN} (the agent "
            f"is asked) less {FLOOR} (HAProxy refuses by itself), both timed from sending."
        )
    late = result["generator"]
    if late.get("count"):
        noisy = " [yellow]This machine is too busy to measure on.[/]" if late["p99"] > _NOISY else ""
        console.print(
            f"The generator woke {duration(late['p50'])} late at the median, {duration(late['p99'])} at p99; "
            f"that is taken out of the latencies where the gate did not cause it.{noisy}"
        )
    for example in result["examples"][:8]:
        what = example.get("wrong") or f"no answer: {example.get('fault')}"
        role = f" as {example['role']}" if example.get("role") else ""
        told = escape(f"{example['case']}: {example.get('request', '')}{role}: {what}")
        console.print(f"[red]wrong[/] {told}")
    console.print(_objectives(result))
    console.print("[bold green]SLO met[/]" if result["met"] else "[bold red]SLO NOT met[/]")


def _cases(result: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, title="latency by case", title_justify="left", title_style="dim")
    table.add_column("case")
    for name in ("answers", "wrong", *_COLUMNS):
        table.add_column(name, justify="right")
    for name, case in result["cases"].items():
        table.add_row(name, str(case["answers"]), _wrong(case), *_latencies(case["latency"]))
    table.add_row(
        "[bold]all[/]", str(result["answers"]), _wrong(result), *_latencies(result["latency"]), style="bold"
    )
    return table


def _wrong(counts: dict[str, Any]) -> str:
    bad = counts["wrong"] + counts["faults"]
    return f"[red]{bad}[/]" if bad else "0"


def _latencies(found: dict[str, int]) -> list[str]:
    return [duration(found[name]) if name in found else "-" for name in _COLUMNS]


def _objectives(result: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, title="objectives", title_justify="left", title_style="dim")
    for name in ("", "objective", "bound", "got"):
        table.add_column(name)
    for objective in result["objectives"]:
        mark = "[green]met[/]" if objective["met"] else "[red]NOT met[/]"
        table.add_row(mark, objective["name"], objective["bound"], objective["got"])
    return table


def comparison(results: Sequence[tuple[str, dict[str, Any]]], console: Console) -> None:
    """Print several runs side by side, the first one as the measure of the others."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name, _ in results:
        table.add_column(name, justify="right")
    base = results[0][1]
    rows = [
        ("answered/s", lambda result: float(result["rate"]), False),
        *((f"latency {at}", _reader("latency", at), True) for at in _COLUMNS),
        ("check p50", lambda result: float(result["check_cost"].get("p50", 0)), True),
    ]
    for label, read, timed in rows:
        cells = []
        for _, result in results:
            value, first = read(result), read(base)
            shown = duration(value) if timed else f"{value:g}"
            cells.append(shown if result is base or not first else f"{shown} (x{value / first:.2f})")
        table.add_row(label, *cells)
    table.add_row("wrong verdicts", *(str(result["wrong"]) for _, result in results))
    table.add_row("SLO", *("met" if result["met"] else "NOT met" for _, result in results))
    console.print(table)
    loads = {json.dumps(result["offered"], sort_keys=True) for _, result in results}
    if len(loads) > 1:
        console.print("[yellow]These runs were offered different loads: their latencies do not compare.[/]")


def _reader(table: str, name: str) -> Any:  # noqa: ANN401 - a function of a result
    return lambda result: float(result[table].get(name, 0))
