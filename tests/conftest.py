"""One rule for tests that need a Docker engine.

Where none answers they are skipped, and one line says how many, why, and how to have them run. Under
`--iamroles-require=containers`, or with `IAMROLES_REQUIRE=containers` in the environment (as in `.ci/run`),
they fail instead: a run that should have covered containers never passes without.
"""

import asyncio
import gc
import inspect
import os
from collections import Counter

import pytest
import uvloop
from hypothesis import HealthCheck, settings

REQUIRE = "IAMROLES_REQUIRE"
# Of three tests of `-n auto` one waits while two use the CPUs.
os.environ.setdefault("PYTEST_XDIST_AUTO_NUM_WORKERS", str(3 * len(os.sched_getaffinity(0)) // 2))
PATIENCE = 20.0
"""Seconds before an asynchronous test fails; none waits that long when all is well."""


@pytest.fixture(scope="session")
def engine(pytestconfig):
    """A client of the Docker engine."""
    from iamroles_scenarios.stage.docker import find_engine

    client, why = find_engine()
    if client is None:
        wanted = pytestconfig.getoption("--iamroles-require") or os.environ.get(REQUIRE)
        if wanted == "containers":
            pytest.fail(f"Containers are required, but {why}.", pytrace=False)
        pytest.skip(f"needs containers, but {why}. Start a Docker engine to have them run.")
    return client


@pytest.fixture(scope="module")
def stage():
    """The stage of processes; some files have another."""
    from iamroles_scenarios.stage import open_stage

    with open_stage("processes") as opened:
        yield opened


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Mark property tests, and keep in one worker of xdist what shares a fixture: it is put up once."""
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("law")
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        made = item._fixtureinfo.name2fixturedefs
        if shared := [name for name in made if made[name][-1].scope == "module"]:
            given = item.callspec.params if hasattr(item, "callspec") else {}
            first = [str(given[name]) for name in shared if name in given][-1:]  # the others are made in it
            item.add_marker(pytest.mark.xdist_group("-".join([item.path.stem, *first])))


def pytest_collection_finish():
    """Leave thousands of tests out of each search for garbage: it took a fifth of a second."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    """One line for each reason to skip, in place of one for each test; `-rs` lists them all."""
    skipped = [
        found
        for found in terminalreporter.getreports("skipped")
        if "/test_conformance.py" not in found.nodeid
    ]
    for reason, count in Counter(found.longrepr[2] for found in skipped).items():
        terminalreporter.write_line(f"{count} tests skipped: {reason.removeprefix('Skipped: ')}")


# Two shared cores may be busy with something else: a slow draw is no fault of the property under test.
settings.register_profile("iamroles", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("iamroles")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run a test that is a coroutine function, on the loop that the agent uses."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    given = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    async def patiently():
        async with asyncio.timeout(PATIENCE):
            await pyfuncitem.obj(**given)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(patiently())
    return True
