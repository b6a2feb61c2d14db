"""`--version` says if `iamroles` starts another program; `.ci/wheel` plays it with real distributions."""

import os

import pytest
from click.testing import CliRunner

from iamroles_agent import __version__
from iamroles_agent.main import main

OURS = b"#!/usr/bin/python3\nfrom iamroles_agent.main import main\nmain()\n"
FOREIGN = b"#!/usr/bin/python3\nfrom rolesanywhere import main\nmain()\n"
CLAIM = b"[console_scripts]\niamroles = rolesanywhere:main\n"
OWN = b"[console_scripts]\niamroles = iamroles_agent.main:main\n\n[pytest11]\niamroles = iamroles_plugin\n"


@pytest.fixture
def said(tmp_path, monkeypatch):
    """Play `haproxy-iam-roles --version` beside a script and distributions; return the other lines."""

    def play(script, claims=b"", *, elsewhere=False):
        folder, site = tmp_path / "bin", tmp_path / "lib/python3.12/site-packages"
        folder.mkdir()
        for name, claim in {"haproxy_iam_roles-0.1.0": OWN, "iamroles-1.2.1": claims}.items():
            (site / f"{name}.dist-info").mkdir(parents=True)
            (site / f"{name}.dist-info/entry_points.txt").write_bytes(claim)
        if script is not None:
            (folder / "iamroles").write_bytes(script)
            (folder / "iamroles").chmod(0o755)
        if elsewhere:  # as pipx does it
            (tmp_path / "home").mkdir()
            (tmp_path / "home/iamroles").symlink_to(folder / "iamroles")
            folder = tmp_path / "home"
        monkeypatch.setenv("PATH", str(folder))
        done = CliRunner().invoke(main, ["--version"], prog_name="haproxy-iam-roles")
        first, *rest = done.output.splitlines()
        assert (done.exit_code, first) == (0, f"haproxy-iam-roles, version {__version__}")
        return " ".join(rest).replace(str(tmp_path), "")

    return play


@pytest.mark.parametrize(
    ("script", "claims"), [(None, b""), (None, CLAIM), (OURS, b""), (OURS, b"\xff[]=\n")]
)
def test_nothing_is_said_if_the_name_is_ours(said, script, claims):
    assert said(script, claims) == ""


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_owner_of_another_program_is_named(said, elsewhere):
    assert f"`iamroles` is /{'home' if elsewhere else 'bin'}/iamroles of iamroles 1.2.1, not this" in said(
        FOREIGN, CLAIM, elsewhere=elsewhere
    )


@pytest.mark.parametrize("script", [FOREIGN, b"\x7fELF\xff", b""])
def test_a_program_without_a_distribution_is_said_to_be_another(said, script):
    assert "`iamroles` is /bin/iamroles, not this program" in said(script)


def test_another_claim_to_our_script_is_said(said):
    assert "iamroles 1.2.1 has a command `iamroles` in this environment too" in said(OURS, CLAIM)


def test_a_pipe_in_place_of_the_command_does_not_hold_up(said, tmp_path, monkeypatch):
    (tmp_path / "pipes").mkdir()
    os.mkfifo(tmp_path / "pipes/iamroles", 0o755)
    monkeypatch.setattr("sys.argv", [str(tmp_path / "pipes/haproxy-iam-roles")])

    assert "`iamroles` is /pipes/iamroles, not this program" in said(None)
