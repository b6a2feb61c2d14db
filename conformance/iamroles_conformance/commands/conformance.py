"""`iamroles conformance`: the suite without pytest. Exit codes: 0 passed, 1 not, 2 usage, 3 no stage."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import click

from iamroles_conformance.subject import Request

_F = TypeVar("_F", bound=Callable[..., object])
_STAGE_FAULT = 3
_ELSEWHERE = {
    "selftest": ("iamroles_conformance.commands.selftest", "selftest", "Run mutants against their checks."),
    "fuzz": ("iamroles_conformance.commands.fuzz", "fuzz", "Send broken SPOP by the thousand."),
    "oracle": (
        "iamroles_conformance.commands.oracle",
        "oracle",
        "Decide random policies twice; compare.",
    ),
    "matrix": ("iamroles_conformance.commands.matrix", "matrix", "Play the gate lanes on several HAProxy."),
}
"""Commands of other modules: attached by name, imported when called."""


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_ELSEWHERE})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _ELSEWHERE:
            module, attribute, _ = _ELSEWHERE[cmd_name]
            command = getattr(import_module(module), attribute)
            assert isinstance(command, click.Command)  # noqa: S101 - an attribute of this package
            return command
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands; those of other modules without importing them."""
        own = {name: command.get_short_help_str() for name, command in self.commands.items()}
        rows = own | {name: summary for name, (_, _, summary) in _ELSEWHERE.items()}
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows.items()))


@click.group(cls=_Group)
def conformance() -> None:
    """Judge an agent against the role-check contract."""


def _subject(function: _F) -> _F:
    """The options that say who is judged, on which stage."""
    from iamroles_scenarios.engine.run import ALL_LANES  # noqa: PLC0415 - not for `--help` of others

    for option in (
        click.option("--time-scale", type=click.FloatRange(min=0.1), default=1.0, help="For deadlines."),
        click.option("--haproxy", metavar="VERSION", help="2.6, 2.8, 3.0, 3.2; default: the stage's."),
        click.option("--require", type=click.Choice(["containers"]), help="A missing engine is an error."),
        click.option("--stage", type=click.Choice(["auto", "containers", "processes"]), default="auto"),
        click.option("--lane", multiple=True, type=click.Choice(ALL_LANES), help="May be repeated."),
        click.option("--allowed", type=click.Path(), help="JSON: an iam-check that it allows."),
        click.option("--agent-address", metavar="HOST:PORT", help="A running agent; judged on the wire."),
        click.option(
            "--agent", type=click.Path(), help="Path of an agent.toml; default: the reference agent."
        ),
    ):
        function = option(function)
    return function


def _request(options: dict[str, object]) -> Request:
    def text(name: str) -> str | None:
        value = options[name]
        return None if value is None else str(value)

    lanes, scale = options["lane"], options["time_scale"]
    return Request(
        agent=text("agent"),
        address=text("agent_address"),
        allowed=text("allowed"),
        lanes=tuple(lanes) if isinstance(lanes, tuple) else (),
        stage=str(options["stage"]),
        require=text("require"),
        haproxy=text("haproxy"),
        scale=scale if isinstance(scale, float) else 1.0,
    )


@conformance.command()
@_subject
@click.option("--check", "checks", multiple=True, metavar="NAME", help="A check, scenario or requirement.")
@click.option("--report", "directory", type=click.Path(path_type=Path), help="Write the report there.")
@click.option("--quiet", "-q", is_flag=True, help="Say only what did not pass, and the sum.")
def run(checks: tuple[str, ...], directory: Path | None, quiet: bool, **options: object) -> None:
    """Play checks and give verdicts.

    Exit code 0 if all passed, 1 if not, 3 if the stage cannot be used.
    """
    from iamroles_conformance.reports import explain, report  # noqa: PLC0415
    from iamroles_scenarios.engine.run import SelectionError, selected_by  # noqa: PLC0415
    from iamroles_scenarios.stage import StageError  # noqa: PLC0415

    request = _request(options)
    select = selected_by(checks)
    try:
        planned = [check for check in request.planned() if select(check)]
        with request.run(planned) as started:
            _introduce(started.agent.name, started.agent.version, started.stage, started.haproxy_version)
            pairs = []
            for check, result in zip(planned, started.results(), strict=True):
                pairs.append((check, result))
                if not result.verdict.good:
                    again = shlex.join(["iamroles", "conformance", "run", *request.arguments("--")])
                    click.echo(
                        explain.failure(check, result, f"{again} --check {shlex.quote(check.name)}") + "\n"
                    )
                elif not quiet:
                    click.echo(f"{result.verdict.value:14} {check.name}")
            found = report.document(request, started, pairs)
    except SelectionError as error:
        raise click.UsageError(str(error)) from error
    except StageError as error:
        click.echo(f"the stage cannot be used: {error}", err=True)
        sys.exit(_STAGE_FAULT)
    if directory is not None:
        for path in report.write(found, directory):
            click.echo(f"wrote {path}")
    counts = Counter(result.verdict.value for _, result in pairs)
    click.echo(
        ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) + f" in {found['seconds']} s"
    )
    sys.exit(0 if found["passed"] else 1)


def _introduce(name: str, version: str, stage: object, haproxy: str) -> None:
    click.echo(f"judging {name} {version}".rstrip() + (f", HAProxy {haproxy}" if haproxy else ""))
    if stage is not None:
        click.echo(str(getattr(stage, "why", "")))


@conformance.command("list")
@click.option("--lane", multiple=True, help="Only these lanes.")
@click.option("--requirements", is_flag=True, help="List requirements and how many checks prove each.")
def list_(lane: tuple[str, ...], requirements: bool) -> None:
    """List checks, or requirements; starts nothing."""
    from iamroles_scenarios.declarations.catalogue import catalogue  # noqa: PLC0415
    from iamroles_scenarios.engine.run import ALL_LANES, plan  # noqa: PLC0415

    planned = plan(lane or ALL_LANES)
    if not requirements:
        for check in planned:
            click.echo(f"{check.name:52} {check.title}")
        return
    for name, item in catalogue().items():
        proofs = sum(name in check.requirements for check in planned)
        click.echo(f"{name:22} {item.level:6} {proofs:3} checks  {item.text}")


@conformance.command()
@click.argument("name")
def explain(name: str) -> None:
    """Explain a requirement (TOKEN-TIME-001), scenario (gate.expired) or check."""
    from iamroles_conformance.reports.explain import about  # noqa: PLC0415
    from iamroles_scenarios.engine.run import plan  # noqa: PLC0415

    lines = list(about(name, plan()))
    if not lines:
        raise click.UsageError(f"nothing is called {name!r}: see `iamroles conformance list`.")
    click.echo("\n".join(lines))


@conformance.command()
@click.argument("saved", type=click.Path(path_type=Path))
@click.option("--html", type=click.Path(path_type=Path), help="Write the page there.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML there.")
@click.option("--json", "json_", type=click.Path(path_type=Path), help="Write the document there.")
def report(saved: Path, html: Path | None, junit: Path | None, json_: Path | None) -> None:
    """Make other forms of a saved report.json; without options, sum it up."""
    from iamroles_conformance.reports import report as reports  # noqa: PLC0415

    try:
        found = reports.load(saved)
    except reports.ReportError as error:
        raise click.UsageError(str(error)) from error
    forms = ((html, reports.as_html), (junit, reports.as_junit), (json_, reports.as_json))
    for path, form in forms:
        if path is not None:
            path.write_text(form(found), encoding="utf-8")
            click.echo(f"wrote {path}")
    if not any((html, junit, json_)):
        product = found["product"]
        click.echo(
            f"{product['name']} {product['version']}, {found['stage']['why']} HAProxy {found['haproxy']}"
        )
        for check in found["checks"]:
            if check["verdict"] != "pass":
                click.echo(f"{check['verdict']:14} {check['name']}: {check['message']}")
        click.echo(", ".join(f"{count} {verdict}" for verdict, count in found["totals"].items()))


@conformance.command()
@click.option("--agent", type=click.Path(), help="Path of an agent.toml; default: the reference agent.")
def doctor(agent: str | None) -> None:
    """Look at what is here, and say what to do about what is not."""
    from iamroles_conformance.commands.doctor import examine  # noqa: PLC0415

    ready = True
    for finding in examine(Request(agent=agent)):
        ready = ready and (finding.good or not finding.needed)
        mark = "ok  " if finding.good else ("MISSING" if finding.needed else "none")
        click.echo(f"{mark:8} {finding.what}: {finding.said}")
        if finding.remedy:
            click.echo(f"{'':8} {finding.remedy}")
    sys.exit(0 if ready else _STAGE_FAULT)
