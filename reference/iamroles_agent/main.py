"""The `iamroles` command: a dispatcher over the groups that installed extras contribute.

Each package names its groups under the entry point group ``iamroles.commands``; a group is loaded only
when it is called, so `iamroles agent run` never pays for, or needs, the conformance extra.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

import click

from iamroles_agent import __version__

_EXTRA_OF = {"conformance": "conformance", "trace": "conformance", "demo": "conformance", "load": "load"}


class _Commands(click.Group):
    """A click group whose members are entry points, loaded on use."""

    def _found(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group="iamroles.commands")}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(self._found())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        entry = self._found().get(cmd_name)
        if entry is None:
            return None
        try:
            command = entry.load()
        except ModuleNotFoundError as error:
            extra = _EXTRA_OF.get(cmd_name)
            if extra is None or (error.name or "").startswith("iamroles_"):
                raise
            raise click.ClickException(
                f"`iamroles {cmd_name}` needs the package {error.name!r}: "
                f"pip install 'haproxy-iam-roles[{extra}]'"
            ) from error
        assert isinstance(command, click.Command)  # noqa: S101 - an entry point of this distribution
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the groups without loading them: their help must not need every extra."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _SUMMARY.get(name, "")) for name in self.list_commands(ctx)])


_SUMMARY = {
    "agent": "Run the reference SPOE agent.",
    "policy": "Check, explain, compare and render a policy.",
    "audit": "Verify, query, sign and prove the audit log.",
    "token": "Mint and inspect test tokens.",
    "conformance": "Judge an agent against the specification.",
    "trace": "Decode a captured SPOP byte stream.",
    "load": "Measure token-check latency through HAProxy.",
    "demo": "Walk through allow, deny, expiry, overlap and rotation.",
}


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="iamroles")
def main() -> None:
    """Role checks at the proxy: HAProxy, an SPOE agent, OIDC tokens and AWS roles."""
