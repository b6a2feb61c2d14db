"""Options that the commands of `iamroles load` share: the target, and how a run ends."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from iamroles_loadtests.asking import targets
from iamroles_loadtests.asking.gate_config import GateConfigError
from iamroles_loadtests.asking.shapes import ANYWHERE, BY_HTTP
from iamroles_loadtests.measuring.generator import GeneratorError
from iamroles_loadtests.pages import report as reports
from iamroles_loadtests.results.result import ResultError
from iamroles_scenarios.base.errors import DocumentError, Mistake, PageError, SuiteError
from iamroles_scenarios.commands.staged import OPTIONS, with_options
from iamroles_scenarios.stage import AgentSpec
from iamroles_scenarios.stage.reference import reference_agent
from iamroles_scenarios.traffic import Right

INVALID = 4
"""Exit status of a run that its own generator may have bent."""
_NOT_TOLD = ("directory", "as_json")
"""Options that say nothing about what was measured."""


@contextmanager
def usage() -> Iterator[None]:
    """Turn what is wrong with arguments, or a file that they name, into exit status 2."""
    try:
        yield
    except (DocumentError, targets.TargetError, Mistake, PageError, ResultError) as error:
        raise click.UsageError(str(error)) from error


@contextmanager
def faults(command: str = "load") -> Iterator[None]:
    """Turn faults of the stage or the generator into exit status 3, those of arguments as `usage` does."""
    try:
        yield
    except (targets.TargetError, Mistake) as error:
        raise click.UsageError(str(error)) from error
    except (SuiteError, GeneratorError, GateConfigError, OSError) as error:
        click.echo(f"iamroles {command}: {error}", err=True)
        raise SystemExit(3) from error


where = with_options(
    *OPTIONS,
    click.option("--straight", is_flag=True, help="Ask the stage's agent by SPOP, without HAProxy."),
    click.option("--agent-address", metavar="HOST:PORT", help="Any running SPOE agent, asked by SPOP."),
    click.option(
        "--argument",
        "arguments",
        multiple=True,
        metavar="NAME=VALUE",
        help="Argument of iam-check, for --agent-address.",
    ),
    click.option("--url", metavar="URL", help="Any HTTP/1.1 server, e.g. your own HAProxy."),
    click.option(
        "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Of the requests to --url."
    ),
    click.option("--method", default="GET", show_default=True, help="Of the requests to --url."),
    click.option("--status", type=click.IntRange(0, 999), help="Right status.  [default: 200; SPOP: any]"),
    click.option("--holds", multiple=True, metavar="TEXT", help="Text that the right answer holds."),
    click.option("--pid", "pids", multiple=True, metavar="NAME=PID", help="Read this process's CPU time."),
)
"""Adds the options that say what is measured."""
_FOR = {
    "arguments": ("--argument", ("agent_address",)),
    "headers": ("--header", ("url",)),
    "status": ("--status", ("url", "agent_address")),
    "holds": ("--holds", ("url", "agent_address")),
    "pids": ("--pid", ("url", "agent_address")),
}
"""Options for these targets only: for a stage, questions, answers and processes are known."""


def opened(options: dict[str, Any], wanted: targets.Wanted) -> AbstractContextManager[targets.Target]:
    """Open what is measured, as the options say.

    Args:
        options: those of `where`, and `shapes`.
        wanted: which pools a gate on a stage needs.

    Raises:
        click.UsageError: options that do not go together.
        StageError: `agent.toml` is not what it should be.
        TargetError: the URL cannot be measured.
    """
    agent = AgentSpec.load(options["agent_file"]) if options["agent_file"] else reference_agent()
    strange = [name for name in ("url", "agent_address", "straight") if options[name]]
    if len(strange) > 1:
        raise click.UsageError("--url, --agent-address and --straight exclude each other")
    able = BY_HTTP if options["url"] else ANYWHERE
    needs = [f"--shape {name}" for name in options["shapes"] if name not in able] + ["--tls"] * wanted.tls
    if strange and needs:
        flag = strange[0].replace("_", "-")
        raise click.UsageError(f"{needs[0]} does not go with --{flag}: it is for the gate on a stage")
    for given, (flag, needed) in _FOR.items():
        if options[given] not in (None, ()) and not any(options[name] for name in needed):
            others = " or ".join(f"--{name.replace('_', '-')}" for name in needed)
            raise click.UsageError(f"{flag} goes with {others}: on a stage the suite knows it")
    pids = _numbers(dict(_parsed(options["pids"], "=", "--pid agent=1234")))
    status = (0 if options["agent_address"] else 200) if options["status"] is None else options["status"]
    right = Right(status, tuple(text.encode() for text in options["holds"]))
    if options["url"]:
        fields = _parsed(options["headers"], ":", "--header 'Name: value'")
        return nullcontext(
            targets.url(
                options["url"], method=options["method"].upper(), fields=fields, right=right, pids=pids
            )
        )
    check = dict(_parsed(options["arguments"], "=", "--argument name=value"))
    if options["agent_address"]:
        return nullcontext(targets.spoe(options["agent_address"], check=check, right=right, pids=pids))
    return targets.gate(
        agent,
        wanted,
        kind=options["kind"],
        haproxy=options["haproxy"],
        straight_on=options["straight"],
    )


def _numbers(pids: dict[str, str]) -> dict[str, int]:
    wrong = [value for value in pids.values() if not value.isdecimal()]
    if wrong:
        raise click.UsageError(f"--pid: {wrong[0]!r} is not the number of a process")
    return {name: int(value) for name, value in pids.items()}


def _parsed(items: Sequence[str], separator: str, what: str) -> list[tuple[str, str]]:
    found = []
    for item in items:
        name, there, value = item.partition(separator)
        if not there or not name.strip():
            raise click.UsageError(f"{item!r}: write {what}")
        found.append((name.strip(), value.strip()))
    return found


def shown(options: dict[str, Any]) -> dict[str, Any]:
    """The options as result.json holds them; credentials are left out."""
    return {name: _plain(name, value) for name, value in options.items() if name not in _NOT_TOLD}


def _plain(name: str, value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(name, item) for item in value]
    return _safe(name, str(value)) if isinstance(value, str | Path) else value


def command_line(context: click.Context) -> str:
    """The command line that makes this run again; credentials are left out."""
    words = ["iamroles", "load", str(context.info_name)]
    for parameter in context.command.params:
        name = str(parameter.name)
        value = context.params.get(name)
        if name in _NOT_TOLD or value is None or value is False or value in ((), parameter.default):
            continue
        if isinstance(parameter, click.Argument):
            words += ["--", *value]
            continue
        flag = parameter.opts[0]
        for item in value if isinstance(value, tuple) else (value,):
            words += [flag] if item is True else [flag, _safe(name, str(item))]
    return shlex.join(words)


def _safe(name: str, value: str) -> str:
    """Name a header or argument that may be a credential, without its value; of a URL, what names a place."""
    if name == "url":
        return targets.place(value)
    if name == "headers" and ":" in value:
        return f"{value.partition(':')[0]}: ..."
    return f"{value.partition('=')[0]}=..." if name == "arguments" else value


def end(result: dict[str, Any], directory: Path | None, *, as_json: bool) -> None:
    """Print and write a result, and leave with the status that it means.

    Raises:
        SystemExit: 1 objectives not met or wrong answers, 4 the run is invalid.
    """
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        reports.summary(result, console())
    if directory is not None:
        click.echo(f"written to {reports.write(result, directory)}", err=True)
    if not result["met"] or result["wrong"]:
        raise SystemExit(1)
    if not result["valid"]:
        raise SystemExit(INVALID)


def console() -> Console:
    """The terminal, or lines of 110 characters."""
    return Console(highlight=False, width=None if Console().is_terminal else 110)
