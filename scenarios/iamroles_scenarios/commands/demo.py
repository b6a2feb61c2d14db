"""`iamroles demo`: the gate at work, step by step, in the terminal.

What a newcomer sees first, so every step shows the same five things in the same order: what is asked (as curl
would ask it), the answer, why (from HAProxy's log, for the client is never told), which backend got the
request, and what that backend was told about the caller. Nothing is staged in advance: tokens are minted as
they are sent, the answers come from a real HAProxy, and a step that does not go as it is told here fails the
demo.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from iamroles_scenarios.declarations.scenario import RequestSpec, WorldSpec, policy_of
from iamroles_scenarios.engine.observation import Observation
from iamroles_scenarios.engine.players import ProxyPlayer
from iamroles_scenarios.errors import ControlError, HarnessFault, StageError
from iamroles_scenarios.mock.clients import IssuerHandle
from iamroles_scenarios.reference import reference_agent
from iamroles_scenarios.stage import KINDS, AgentSpec, Stage, World, open_stage

HOST = "api.example.com"
LIFE = 3
"""Seconds that the short-lived token of the demo has."""
REFRESH = 1
"""Seconds after which the agent looks at the issuer's keys again; minutes in production."""
_POLL = 0.1
_STATUS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 503: "Service Unavailable"}
_TAGS = ("principal", "role", "session", "issuer", "rule", "expires", "request-id")


@dataclass(frozen=True)
class Told:
    """How a step must go."""

    status: int
    backend: str = ""
    reason: str = ""
    rule: str = ""

    def differs(self, seen: Observation) -> list[str]:
        """What went otherwise, one sentence each."""
        got = {
            "status": seen.status,
            "backend": seen.backend,
            "reason": _reason(seen),
            "rule": seen.tags.get("rule", ""),
        }
        told = {"status": self.status, "backend": self.backend, "reason": self.reason, "rule": self.rule}
        return [
            f"{name}: told {told[name] or 'none'}, got {value or 'none'}"
            for name, value in got.items()
            if told[name] != value
        ]


@dataclass(frozen=True)
class Act:
    """One step: a request and how it goes, after something has happened."""

    title: str
    why: str
    request: RequestSpec
    told: Told
    before: Callable[[Theatre], str] | None = None
    """Makes something happen; returns one line that says what."""
    until: float = 0.0
    """Seconds for which to ask again, where the answer changes by itself."""


@dataclass
class Theatre:
    """What the steps play with."""

    stage: Stage
    world: World
    issuer: IssuerHandle
    player: ProxyPlayer
    tokens: dict[str, str] = field(default_factory=dict)

    def mint(self, name: str, **recipe: Any) -> str:  # noqa: ANN401 - a recipe's values
        """Mint a token and keep it under a name."""
        self.tokens[name] = self.issuer.mint(recipe)
        return self.tokens[name]

    def play(self, act: Act) -> Observation:
        """Ask until it goes as told, or time is up."""
        deadline = time.monotonic() + act.until
        token = self.tokens.get(act.request.token, "")
        while True:
            seen = self.player.ask(act.request, token, with_reason=True)
            if not act.told.differs(seen) or time.monotonic() >= deadline:
                return seen
            time.sleep(_POLL)


def _short_lived(theatre: Theatre) -> str:
    end = math.ceil(time.time() + LIFE)
    theatre.mint("SHORT", roles=["reader"], exp=end)
    return f"alice gets a token that lives until {time.strftime('%H:%M:%S', time.localtime(end))}"


def _expire(theatre: Theatre) -> str:  # noqa: ARG001 - every event takes the theatre
    return f"the clock goes on until that second has come ({LIFE} s)"


def _rotate(theatre: Theatre) -> str:
    theatre.mint("OLD", roles=["reader"])
    key = theatre.issuer.rotate(overlap=True)
    theatre.mint("NEW", roles=["reader"])
    return f"the identity provider signs with a new key, {key.kid}; the old one stays published"


def _withdraw(theatre: Theatre) -> str:
    newest, *old = theatre.issuer.jwks()
    current = theatre.issuer.keys[0].kid
    for key in (newest, *old):
        if key["kid"] != current:
            theatre.issuer.remove(key["kid"])
    return f"the old keys are withdrawn; the agent looks again within {REFRESH} s"


def _kill(theatre: Theatre) -> str:
    theatre.world.agent.kill()
    return "the agent is killed (SIGKILL)"


def _revive(theatre: Theatre) -> str:
    theatre.world.agent.start()
    theatre.world.haproxy.wait_agent(up=True)
    return "the agent is started again; HAProxy's health check sees it"


ACTS = (
    Act(
        "A reader reads an order",
        'The token carries the role "reader", and grant R1 opens GET below /orders.',
        RequestSpec(path="/orders/1", token="READER"),  # noqa: S106
        Told(200, "orders-ro", rule="R1"),
    ),
    Act(
        "Nobody without a token",
        "The client learns that a bearer token is wanted, and nothing else.",
        RequestSpec(path="/orders/1"),
        Told(401, reason="no_credentials"),
    ),
    Act(
        "A role opens its own routes only",
        "No grant of the reader has POST: what is not granted is denied.",
        RequestSpec(method="POST", path="/orders", token="READER"),  # noqa: S106
        Told(403, reason="no_grant"),
    ),
    Act(
        "A client cannot say who it is",
        "Identity headers from outside are stripped before anything looks at them: the caller stays alice.",
        RequestSpec(path="/orders/1", token="READER", headers=[["X-IAM-Principal", "root"]]),  # noqa: S106
        Told(200, "orders-ro", rule="R1"),
    ),
    Act(
        "Nor sneak past a route",
        "A path that two readers could read differently is refused, not guessed at.",
        RequestSpec(path="/orders/%2e%2e/export", token="READER"),  # noqa: S106
        Told(400, reason="path_ambiguous"),
    ),
    Act(
        "Two roles overlap",
        "The token carries reader and writer. Which one counts? Nobody said, so neither does.",
        RequestSpec(method="POST", path="/orders", token="BOTH"),  # noqa: S106
        Told(403, reason="ambiguous_role"),
    ),
    Act(
        "The client asks for one of them",
        "X-IAM-Role is a question, not a claim: it is granted because the token carries that role.",
        RequestSpec(method="POST", path="/orders", token="BOTH", role="writer"),  # noqa: S106
        Told(200, "orders-rw", rule="R2"),
    ),
    Act(
        "Acting as the writer, reading is closed",
        "Only the active role grants: least privilege, one role at a time.",
        RequestSpec(path="/orders/1", token="BOTH", role="writer"),  # noqa: S106
        Told(403, reason="no_grant"),
    ),
    Act(
        "The most specific grant wins",
        "R1 and R4 both open this path to a reader; R4 says more exactly where the export lives.",
        RequestSpec(path="/orders/export", token="READER"),  # noqa: S106
        Told(200, "export", rule="R4"),
    ),
    Act(
        "A deny cannot be shed by choosing another role",
        "This token carries reader and contractor. It acts as reader, but denies count for every role: R3.",
        RequestSpec(path="/orders/export", token="CONTRACTOR", role="reader"),  # noqa: S106
        Told(403, reason="denied_by_rule"),
    ),
    Act(
        "A temporary token works",
        "It lives for seconds, as an AI agent's or a build job's should. The connection is kept alive.",
        RequestSpec(path="/orders/1", token="SHORT", connection="kept"),  # noqa: S106
        Told(200, "orders-ro", rule="R1"),
        before=_short_lived,
    ),
    Act(
        "And when it expires, access dies with it",
        "The same connection, the same token: a remembered verdict ends with the token's last second.",
        RequestSpec(path="/orders/1", token="SHORT", connection="kept"),  # noqa: S106
        Told(401, reason="token_expired"),
        before=_expire,
        until=LIFE + 5,
    ),
    Act(
        "Keys rotate: the new key works at once",
        "An unknown key makes the agent fetch the set again, without a restart.",
        RequestSpec(path="/orders/1", token="NEW"),  # noqa: S106
        Told(200, "orders-ro", rule="R1"),
        before=_rotate,
        until=5,
    ),
    Act(
        "The old key still works while it is published",
        "Both keys overlap, so nobody is logged out by a rotation.",
        RequestSpec(path="/orders/1", token="OLD"),  # noqa: S106
        Told(200, "orders-ro", rule="R1"),
    ),
    Act(
        "A withdrawn key is dead",
        "Remembered verdicts of that key are dropped too.",
        RequestSpec(path="/orders/1", token="OLD"),  # noqa: S106
        Told(401, reason="key_unknown"),
        before=_withdraw,
        until=10,
    ),
    Act(
        "The agent dies: the gate stays shut",
        "No verdict is no permission. 503 says: try again, you were not judged.",
        RequestSpec(path="/orders/1", token="NEW"),  # noqa: S106
        Told(503),
        before=_kill,
    ),
    Act(
        "The agent is back",
        "Nothing else had to be restarted.",
        RequestSpec(path="/orders/1", token="NEW"),  # noqa: S106
        Told(200, "orders-ro", rule="R1"),
        before=_revive,
        until=10,
    ),
)


class Narrator:
    """Prints the demo.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown = False

    def opening(self, theatre: Theatre, policy: Mapping[str, Any]) -> None:
        """Who is on stage, and what the policy says."""
        parts = f"{theatre.stage.why} HAProxy {theatre.world.haproxy.version}."
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

    def title(self, number: int, act: Act) -> None:
        """What comes now, and why it goes as it does."""
        self._console.print()
        self._console.print(Text.assemble((f"{number:>2} ", "bold cyan"), (act.title, "bold")))
        self._console.print(Text(f"   {act.why}", "italic"), soft_wrap=True)

    def event(self, text: str) -> None:
        """Something happens before the request."""
        self._console.print(Text.assemble(("   * ", "yellow"), (text, "yellow")), soft_wrap=True)

    def asked(self, act: Act, world: World) -> None:
        """The request as curl would make it; a token by its name, for a token is a key."""
        request = act.request
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
        words.append(f"{world.proxy.url}{request.path}")
        self._console.print(Text.assemble(("   $ ", "dim"), " ".join(words)), soft_wrap=True)

    def answered(self, act: Act, seen: Observation) -> bool:
        """The answer, why, and what the backend saw; whether it went as told."""
        status = f"{seen.status} {_STATUS.get(seen.status or 0, '')}"
        if seen.allow:
            what = Text.assemble((f"   {status}", "bold green"), " from backend ", (seen.backend, "bold"))
        else:
            said = f'   the client is told: error="{seen.error}"' if seen.error else ""
            what = Text.assemble((f"   {status}", "bold red"), (said, "dim"))
        self._console.print(what)
        log = _reason(seen) or ("allowed by " + seen.tags.get("rule", "") if seen.allow else "no verdict")
        self._console.print(Text.assemble(("   HAProxy's log says ", "dim"), (log, "bold")))
        self._tags(seen)
        differences = act.told.differs(seen)
        for difference in differences:
            self._console.print(Text.assemble(("   NOT AS TOLD ", "bold red"), difference))
        return not differences

    def _tags(self, seen: Observation) -> None:
        """What the backend was told: all of it the first time, then what changes."""
        tags = {key.removeprefix("x-iam-"): value for key, value in seen.headers if key.startswith("x-iam-")}
        if not tags:
            return
        if not self._shown:
            self._shown = True
            self._console.print(Text("   and the backend is told", "dim"))
            for name in _TAGS:
                label = (f"     X-IAM-{name.title():<11}", "dim")
                self._console.print(Text.assemble(label, tags.get(name, "")), soft_wrap=True)
            return
        role = tags.get("role", "").rpartition("/")[2]
        until = time.strftime("%H:%M:%S", time.localtime(int(tags.get("expires", "0"))))
        told = f"{tags.get('principal')} as {role} until {until}"
        self._console.print(Text.assemble(("   and the backend is told ", "dim"), told))

    def closing(self, good: int) -> None:
        """What came of it, and where to go next."""
        style, verdict = ("green", "as told") if good == len(ACTS) else ("red", "NOT as told")
        self._console.print()
        self._console.print(f"[bold {style}]{good} of {len(ACTS)} steps went as told.[/]", highlight=False)
        if good == len(ACTS):
            self._console.print(
                "Next: [bold]iamroles conformance run[/] judges an agent, [bold]iamroles load run[/] "
                "measures one,\n      [bold]iamroles policy explain[/] says why a request is allowed or not."
            )
        else:
            self._console.print(
                f"The demo went {verdict}: see above, and docs/ for what each step relies on."
            )


def _reason(seen: Observation) -> str:
    return "" if seen.reason in (None, "-") else str(seen.reason)


def perform(stage: Stage, agent: AgentSpec, narrator: Narrator, *, pause: Callable[[], None]) -> int:
    """Play all steps; returns how many went as told.

    Raises:
        StageError, HarnessFault, ControlError: a part of the stage failed.
    """
    keys = {"refresh": f"{REFRESH}s", "cooldown": "1s"}
    policy = policy_of(WorldSpec(policy="orders", override={"keys": keys}))
    issuer = stage.idp.issuer("corp")
    with stage.world(agent, policy) as world:
        theatre = Theatre(stage, world, issuer, ProxyPlayer(world, 1.0))
        try:
            theatre.mint("READER", roles=["reader"])
            theatre.mint("BOTH", roles=["reader", "writer"])
            theatre.mint("CONTRACTOR", roles=["reader", "contractor"])
            narrator.opening(theatre, policy)
            good = 0
            for number, act in enumerate(ACTS, 1):
                pause()
                narrator.title(number, act)
                if act.before is not None:
                    narrator.event(act.before(theatre))
                narrator.asked(act, world)
                good += narrator.answered(act, theatre.play(act))
        finally:
            theatre.player.close()
    narrator.closing(good)
    return good


@click.command()
@click.option("--stage", "kind", type=click.Choice(KINDS), default="auto", show_default=True)
@click.option("--haproxy", metavar="VERSION", help="2.6, 2.8, 3.0, 3.2, or for processes a path.")
@click.option(
    "--agent",
    "agent_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Another agent's agent.toml.  [default: the reference agent]",
)
@click.option("--pause", is_flag=True, help="Wait for a key before each step.")
@click.option("--color/--no-color", default=None, help="Default: as the terminal can.")
def demo(*, kind: str, haproxy: str | None, agent_file: Path | None, pause: bool, color: bool | None) -> None:
    """Walk through allow, deny, overlap, expiry, rotation and an outage, on a real HAProxy.

    Exit status: 0 if every step went as told, 1 if not, 3 if the stage could not be set up.
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
            good = perform(stage, agent, Narrator(console), pause=wait)
    except (StageError, HarnessFault, ControlError) as error:
        click.echo(f"iamroles demo: {error}", err=True)
        raise SystemExit(3) from error
    if good != len(ACTS):
        raise SystemExit(1)
