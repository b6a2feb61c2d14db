"""The `iamroles` command: a dispatcher over the groups of the five packages.

A group is loaded only when it is called, so `iamroles agent run` neither loads nor needs the conformance
extra.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import click

_GROUPS = {
    "agent": ("agent", "", "Run the reference SPOE agent."),
    "audit": ("tools", "", "Verify, query, sign and prove the audit log."),
    "bench": ("loadtests", "load", "Measure the agent and its parts."),
    "conformance": ("conformance", "conformance", "Judge an agent against the specification."),
    "demo": ("scenarios", "conformance", "Walk through allow, deny, expiry, overlap and rotation."),
    "load": ("loadtests", "load", "Measure token-check latency through HAProxy."),
    "policy": ("tools", "", "Check, explain, compare and render a policy."),
    "revoke": ("agent", "", "Take access away at once."),
    "sessions": ("agent", "", "Show open streams."),
    "token": ("tools", "", "Mint and inspect test tokens."),
    "trace": ("conformance", "conformance", "Decode a captured SPOP byte stream."),
}
"""By name: the package whose `commands` has a module of that name, the extra that it needs, its help."""


class _Commands(click.Group):
    """A click group whose members are loaded on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_GROUPS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _GROUPS:
            return None
        ctx.invoked_subcommand = cmd_name  # for `invoke`, should the import fail
        package, _, _ = _GROUPS[cmd_name]
        gc.disable()  # imported objects stay: to search them again and again takes a tenth of a start
        if package in ("agent", "tools"):
            # The search for pydantic plugins takes a twentieth of a start.
            os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
        try:
            module = import_module(f"iamroles_{package}.commands.{cmd_name}")
        finally:
            gc.freeze()
            gc.enable()
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)  # noqa: S101 - each module has one of its name
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run a command. An unusable file or disk ends it with a sentence and status 2, Ctrl-C and SIGTERM
        with 130, because status 1 means that the command found something. A package that is missing ends it
        with a sentence that names the extra: a group may load its own commands as late as here.
        """
        try:
            with _terminable():
                return super().invoke(ctx)
        except ModuleNotFoundError as error:
            name, (package, _, inside) = ctx.invoked_subcommand or "", (error.name or "").partition(".")
            _, extra, _ = _GROUPS.get(name, ("", "", ""))
            if not extra or (package.startswith("iamroles_") and inside):
                raise
            remedy = f"pip install 'haproxy-iam-roles[{extra}]'"
            raise click.ClickException(
                f"`iamroles {name}` needs the package {package!r}: {remedy}"
            ) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except OSError as error:
            if error.filename is None and error.errno != errno.ENOSPC:
                raise
            click.echo(f"Error: {error.filename or 'the output'}: {error.strerror}", err=True)
            ctx.exit(2)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the groups without loading them, so that the help needs no extra."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, _, summary) in _GROUPS.items()])


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into `KeyboardInterrupt`, like Ctrl-C, so that a command stops what it started."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.getsignal(signal.SIGTERM)
    if former is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        module = import_module("iamroles_agent.commands.version")  # loaded only here
        click.echo(module.text(context.info_name or "iamroles"))
        context.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version."
)
def main() -> None:
    """Role checks at the proxy: HAProxy, an SPOE agent, OIDC tokens and AWS roles."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # as standard error: a file's name may not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
