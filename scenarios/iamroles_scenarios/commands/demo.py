"""`iamroles demo`: the gate at work, step by step, in the terminal.

What a newcomer sees first, so every step shows the same five things in the same order: what is asked (as curl
would ask it), the answer, why (from HAProxy's log, because the client is never told), which backend got the
request, and what that backend learnt about the caller. Nothing is staged in advance: tokens are minted as
they are sent, the answers come from a real HAProxy, and a step that does not go as its note says fails the
demo.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from iamroles_scenarios.base.errors import HarnessFault, Mistake, SuiteError
from iamroles_scenarios.commands.demo_streams import STREAMS, SecondAct, heading
from iamroles_scenarios.commands.staged import OPTIONS, with_options
from iamroles_scenarios.declarations.documents import read
from iamroles_scenarios.declarations.results import Verdict
from iamroles_scenarios.declarations.scenario import RequestSpec, Scenario, Step
from iamroles_scenarios.engine.observation import Observation
from iamroles_scenarios.engine.play import Watcher, play
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.worlds import Loan, Worlds
from iamroles_scenarios.stage import KINDS, AgentSpec, Stage, open_stage
from iamroles_scenarios.stage.reference import reference_agent

_STATUS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 503: "Service Unavailable"}
_TAGS = ("principal", "role", "session", "issuer", "rule", "expires", "request-id")


def tour() -> Scenario:
    """Return what is played."""
    return read(Path(str(files("iamroles_scenarios") / "data" / "demo.toml")), Scenario)


class Narrator(Watcher):
    """Prints the demo while the engine plays it.

    Args:
        console: where to.
        opening: who is on stage.
        pause: called before each request.
    """

    def __init__(self, console: Console, opening: str, pause: Callable[[], None]) -> None:
        self._console = console
        self._opening = opening
        self._pause = pause
        self._shown = False
        self._url = ""
        self.number = 0
        """Requests shown so far."""
        self.good = 0
        """Requests that went as expected."""

    def begins(self, loan: Loan) -> None:
        self.number, self.good = 0, 0
        self._url = loan.world.proxy.url
        self._stage(f"{self._opening} HAProxy {loan.world.haproxy.version}.", loan.policy)

    def happens(self, step: Step) -> None:
        if step.note:
            self._console.print(Text.assemble(("   * ", "yellow"), (step.note, "yellow")), soft_wrap=True)

    def asks(self, step: Step, request: RequestSpec) -> None:
        self._pause()
        self.number += 1
        title, _, why = step.note.partition("\n")
        heading(self._console, self.number, title, why)
        self._curl(request)

    def saw(self, step: Step, seen: Observation, differing: list[str]) -> None:  # noqa: ARG002
        status = f"{seen.status} {_STATUS.get(seen.status or 0, '')}"
        if seen.allow:
            what = Text.assemble((f"   {status}", "bold green"), " from backend ", (seen.backend, "bold"))
        else:
            said = f'   the client reads: error="{seen.error}"' if seen.error else ""
            what = Text.assemble((f"   {status}", "bold red"), (said, "dim"))
        self._console.print(what)
        reason = "" if seen.reason in (None, "-") else str(seen.reason)
        log = reason or ("allowed by " + seen.tags.get("rule", "") if seen.allow else "no verdict")
        self._console.print(Text.assemble(("   HAProxy's log says ", "dim"), (log, "bold")))
        self._tags(seen)
        for difference in differing:
            self._console.print(Text.assemble(("   NOT AS TOLD ", "bold red"), difference))
        self.good += not differing

    def _stage(self, parts: str, policy: Mapping[str, Any]) -> None:
        """Print the parts of the stage, and the policy."""
        self._console.print(
            Panel(
                Text.assemble(
                    ("A token says who you are. Its role says where you may go.\n", "bold"),
                    ("When it expires, access dies with it.\n\n", "bold"),
                    "  client --> HAProxy --> backends orders-ro, orders-rw, export\n",
                    "                |  who is this, and may they? (SPOE)\n",
                    "              agent --> the identity provider's keys (OIDC)\n\n",
                    ("A token is a key, so it is shown by its name: $READER. ", "dim"),
                    (parts, "dim"),
                ),
                title="HAProxy IAM Roles",
                title_align="left",
                padding=(1, 2),
            )
        )
        table = Table(title="The policy", title_justify="left", title_style="bold", box=None, pad_edge=False)
        for name in ("rule", "role", "", "requests", "backend"):
            table.add_column(name, header_style="dim", no_wrap=True)
        for grant in policy["grants"]:
            requests = f"{' '.join(grant['methods'])} {grant['path']}/..."
            table.add_row(grant["id"], *grant["roles"], Text("may", "green"), requests, grant["backend"])
        for deny in policy["denies"]:
            table.add_row(deny["id"], *deny["roles"], Text("never", "red"), f"{deny['path']}/...", "")
        self._console.print(Padding(table, (1, 2)))

    def _curl(self, request: RequestSpec) -> None:
        """The request as curl would make it; a token by its name, because a token is a key."""
        words = ["curl"]
        if request.method != "GET":
            words += ["-X", request.method]
        if "%2e" in request.path:
            words.append("--path-as-is")
        if request.token:
            words += ["-H", f'"Authorization: Bearer ${request.token}"']
        if request.role:
            words += ["-H", f'"X-IAM-Role: {request.role}"']
        for name, value in request.headers:
            words += ["-H", f'"{name}: {value}"']
        words.append(f"{self._url}{request.path}")
        self._console.print(Text.assemble(("   $ ", "dim"), " ".join(words)), soft_wrap=True)

    def _tags(self, seen: Observation) -> None:
        """Return what the backend learnt: all of it the first time, then what changes."""
        tags = {key.removeprefix("x-iam-"): value for key, value in seen.headers if key.startswith("x-iam-")}
        if not tags:
            return
        if not self._shown:
            self._shown = True
            self._console.print(Text("   and the backend learns", "dim"))
            for name in _TAGS:
                label = (f"     X-IAM-{name.title():<11}", "dim")
                self._console.print(Text.assemble(label, tags.get(name, "")), soft_wrap=True)
            return
        role = tags.get("role", "").rpartition("/")[2]
        until = time.strftime("%H:%M:%S", time.localtime(int(tags.get("expires", "0"))))
        actor = f", {tags['actor']} acts" if "actor" in tags else ""
        told = f"{tags.get('principal')} as {role} until {until}{actor}"
        self._console.print(Text.assemble(("   and the backend learns ", "dim"), told))


def closing(console: Console, good: int, told: int) -> None:
    """Return what came of it, and where to go next."""
    style, verdict = ("green", "as told") if good == told else ("red", "NOT as told")
    console.print()
    console.print(f"[bold {style}]{good} of {told} steps went as told.[/]", highlight=False)
    if good == told:
        console.print(
            "Next: [bold]iamroles conformance run[/] judges an agent, [bold]iamroles load run[/] "
            "measures one,\n      [bold]iamroles policy explain[/] says why a request is allowed or not."
        )
    else:
        console.print(f"The demo went {verdict}: see above, and docs/ for what each step relies on.")


def perform(stage: Stage, agent: AgentSpec, console: Console, *, pause: Callable[[], None]) -> bool:
    """Play all steps; whether all went as told.

    Raises:
        SuiteError: a part of the stage failed.
    """
    scenario = tour()
    other = "" if stage.kind == "containers" else " (--stage containers plays it in containers)"
    narrator = Narrator(console, stage.why.removesuffix(": asked for.").rstrip(".") + other + ".", pause)
    worlds = Worlds(stage, agent)
    target = Target("gate", stage, agent, worlds)
    act = None
    try:
        (result,) = play(scenario, target, narrator)
        if agent.features.get("live") and result.verdict is not Verdict.HARNESS_ERROR:
            act = SecondAct(console, pause, narrator.number)
            act.play(target)
    finally:
        worlds.close()
    if result.verdict is Verdict.HARNESS_ERROR or not narrator.number:
        raise HarnessFault("\n".join([result.message, *result.evidence.logs.values()]))
    if result.verdict is Verdict.FAIL and narrator.good == narrator.number:
        console.print(f"NOT AS TOLD {result.message}", style="bold red")
    told = sum(step.request is not None for step in scenario.steps)
    good = narrator.good
    if act is not None:
        told, good = told + STREAMS, good + act.good
    closing(console, good, told)
    return good == told


@click.command()
@with_options(
    click.option(
        "--stage",
        "kind",
        type=click.Choice(KINDS),
        default="processes",
        show_default=True,
        help="Containers need a Docker engine, and minutes the first time, to build images.",
    ),
    *OPTIONS[1:],
)
@click.option("--pause", is_flag=True, help="Wait for a key before each step.")
@click.option("--color/--no-color", default=None, help="Default: as the terminal can.")
def demo(*, kind: str, haproxy: str | None, agent_file: Path | None, pause: bool, color: bool | None) -> None:
    """Walk through allow, deny, overlap, expiry, rotation, an outage and open streams, on a real HAProxy.

    Exit status: 0 if every step went as expected, 1 if not, 2 for a wrong agent.toml, 3 if the stage does not
    start.
    """
    console = Console(force_terminal=True if color else None, no_color=color is False, highlight=False)

    def wait() -> None:
        if pause:
            click.pause()

    try:
        agent = AgentSpec.load(agent_file) if agent_file else reference_agent()
        with console.status("Setting the stage: identity provider, backends, agent, HAProxy..."):
            stage = open_stage(kind, haproxy=haproxy)
        with stage:
            good = perform(stage, agent, console, pause=wait)
    except Mistake as error:
        raise click.UsageError(str(error)) from error
    except SuiteError as error:
        click.echo(f"iamroles demo: {error}", err=True)
        raise SystemExit(3) from error
    if not good:
        raise SystemExit(1)
