"""A result for the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from iamroles_loadtests.pages import page
from iamroles_loadtests.results.compare import Figure
from iamroles_scenarios.base.durations import duration

_COLUMNS = ("p50", "p90", "p99", "p99.9", "max")


def write(result: dict[str, Any], directory: Path) -> Path:
    """Put `result.json`, `summary.txt` and `index.html` into a directory; returns the first."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "result.json"
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    with (directory / "summary.txt").open("w", encoding="utf-8") as stream:
        summary(result, Console(file=stream, width=100, no_color=True, highlight=False))
    (directory / "index.html").write_text(page.render(result), encoding="utf-8")
    return file


def summary(result: dict[str, Any], console: Console) -> None:
    """Print one run."""
    console.print(_title(result))
    knee = result["knee"]
    if knee is not None:
        console.print(
            f"It takes [bold]{knee['capacity']:,.0f}[/] requests a second at most; up to the knee at "
            f"[bold]{knee['rate']:,.0f}[/] without a queue."
        )
    console.print(_phases(result))
    if result["pairs"] is not None:
        console.print(_pairs(result["pairs"]))
    wrong, faults = (f"[{'red' if result[name] else 'green'}]{result[name]}" for name in ("wrong", "faults"))
    console.print(f"{result['answers']:,} verdicts, {wrong} wrong[/], {faults} without an answer[/]")
    for example in result["examples"][:8]:
        console.print(f"[red]wrong[/] {escape(example)}")
    console.print(_objectives(result))
    for doubt in result["doubts"]:
        console.print(f"[yellow]invalid[/] {escape(doubt)}")
    console.print(verdict(result))


def verdict(result: dict[str, Any]) -> str:
    """The last line."""
    met = "[bold green]SLO met[/]" if result["met"] else "[bold red]SLO NOT met[/]"
    if result["valid"]:
        return met
    return (
        f"{met}, but the run is [bold red]invalid[/]: the load generator, not what it measured, made some of "
        "these figures. Use a quieter machine, or a lower rate."
    )


def _title(result: dict[str, Any]) -> str:
    target, environment = result["target"], result["environment"]
    agent = target.get("agent")
    what = f"{agent['name']} {agent['version']}".strip() if agent else target["address"]
    behind = f" behind HAProxy {target['haproxy']}" if "haproxy" in target else ""
    return (
        f"[bold]{escape(what)}[/]{behind}; {escape(environment['cpu'])}, {environment['cores']} cores that "
        "all parts share"
    )


def _phases(result: dict[str, Any]) -> Table:
    heading = ("phase", "rate/s", "answered/s", "from", *_COLUMNS, "CPU µs/request")
    table = plain_table(heading, "phase from")
    for phase in result["phases"]:
        rate = "closed" if phase["closed"] else f"{phase['rate']:,.0f}"
        cpu = ", ".join(f"{part} {used:.0f}" for part, used in phase["cpu"].items() if part != "generator")
        table.add_row(
            phase["name"], rate, f"{phase['answered']:,.0f}", "sent", *_latencies(phase["sent"]), cpu
        )
        if not phase["closed"]:
            table.add_row("", "", "", "due", *_latencies(phase["due"]), "", style="dim")
    return table


def _latencies(found: dict[str, float]) -> list[str]:
    return [duration(found[name]) if name in found else "-" for name in _COLUMNS]


def _pairs(pairs: dict[str, Any]) -> Table:
    title = (
        f"the check's own cost: {pairs['rounds']} interleaved rounds at {pairs['rate']:,.0f}/s, "
        "more than without the question (95 % interval)"
    )
    table = plain_table(("", "p50", "p90", "p99", "CPU of HAProxy", "CPU of the agent"), "", title)
    for pool, differences in pairs["differences"].items():
        found = [differences.get(at) for at in ("p50", "p90", "p99")]
        found += [differences["cpu"].get(part) for part in ("haproxy", "agent")]
        table.add_row(page.PAIRED[pool], *("-" if one is None else page.interval(one) for one in found))
    return table


def _objectives(result: dict[str, Any]) -> Table:
    table = plain_table(("", "objective", "bound", "got"), "objective bound got", "objectives")
    for objective in result["objectives"]:
        mark = "[green]met[/]" if objective["met"] else "[red]NOT met[/]"
        table.add_row(mark, objective["name"], objective["bound"], objective["got"])
    return table


def comparison(
    figures: Sequence[Figure], obstacles: Sequence[str], cautions: Sequence[str], console: Console
) -> None:
    """Print two runs side by side."""
    table = plain_table(("phase", "figure", "first", "second", "ratio", "95 % interval", ""), "phase figure")
    colours = {"slower": "red", "faster": "green", "": "dim"}
    for one in figures:
        said = one.verdict or ("no difference shown" if one.interval else "")
        values = (one.in_words(value) for value in (one.before, one.after))
        verdict = f"[{colours[one.verdict]}]{said}[/]"
        table.add_row(one.phase, one.name, *values, f"x{one.ratio:.2f}", one.interval, verdict)
    console.print(table)
    for obstacle in obstacles:
        console.print(f"[red]not comparable[/] {escape(obstacle)}")
    for caution in cautions:
        console.print(f"[yellow]caution[/] {escape(caution)}")


def plain_table(heading: Sequence[str], left: str, title: str | None = None) -> Table:
    """A table without lines; columns named in `left`, or not at all, are of words."""
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="dim")
    for name in heading:
        table.add_column(name, justify="left" if name in ("", *left.split()) else "right")
    return table
