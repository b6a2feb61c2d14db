"""The pytest plugin: one item for each check, the same engine behind it as behind `iamroles conformance run`.

Every pytest run in an environment that has the distribution imports this module. So its top imports pytest
and `errors`, which cost nothing; the rest of the suite is imported when `test_conformance.py` is collected.
"""

from __future__ import annotations

import shlex
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from iamroles_conformance.errors import ConformanceError, ConformanceFailure, ConformanceWarning, ExitCode

if TYPE_CHECKING:
    from iamroles_conformance.subject import Subject
    from iamroles_scenarios.declarations.results import CheckResult
    from iamroles_scenarios.declarations.scenario import PlannedCheck
    from iamroles_scenarios.engine.run import Run

_HERE = Path(__file__).parent
_GROUP = "iamroles"
"""All checks, for xdist: they share one run."""
_RUN: pytest.StashKey[Run] = pytest.StashKey()
_SUBJECT: pytest.StashKey[Subject] = pytest.StashKey()
_RESULTS: pytest.StashKey[list[tuple[PlannedCheck, CheckResult]]] = pytest.StashKey()
_TOLD: pytest.StashKey[set[str]] = pytest.StashKey()
"""Causes in the set-up that a failure has shown in full."""
_SKIPPED, _UNTESTABLE = ("verdict", "not-applicable"), ("verdict", "untestable")
"""The property of an item by which its report is known, whatever its path is called."""


def _scale(text: str) -> float:
    found = float(text)
    if not 0.1 <= found < float("inf"):
        raise ValueError(text)
    return found


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the suite; all begin with `--iamroles-`."""
    group = parser.getgroup("iamroles", "role-check conformance")
    add = group.addoption
    add(
        "--iamroles-agent",
        metavar="FILE",
        help="agent.toml of the agent to judge; default: the reference's",
    )
    add("--iamroles-agent-address", metavar="HOST:PORT", help="a running agent, judged on the wire")
    add(
        "--iamroles-allowed",
        metavar="FILE",
        help="JSON: an iam-check that the running agent allows",
    )
    add("--iamroles-stage", default="auto", choices=("auto", "containers", "processes"), help="kind of stage")
    add("--iamroles-require", choices=("containers",), help="a missing container engine is an error")
    add("--iamroles-haproxy", metavar="VERSION", help="HAProxy to put before the agent: 2.6, 2.8, 3.0, 3.2")
    add(
        "--iamroles-lane", action="append", default=[], help="wire, gate, gate-spop or proxy; may be repeated"
    )
    add(
        "--iamroles-time-scale",
        type=_scale,
        default=1.0,
        metavar="X",
        help="factor on all deadlines",
    )
    add(
        "--iamroles-grade",
        default="core",
        choices=("core", "strict"),
        help="strict: what SPEC.md asks beyond the standards counts too",
    )
    add("--iamroles-report", metavar="DIR", help="write report.json, report.html and junit.xml there")
    add("--iamroles-evidence", metavar="FILE", help="write the bundle of evidence there, a .tar.gz file")


def _subject(config: pytest.Config) -> Subject:
    from iamroles_conformance.subject import Subject  # noqa: PLC0415 - see above

    if _SUBJECT not in config.stash:
        option = config.getoption
        config.stash[_SUBJECT] = Subject(
            agent=option("--iamroles-agent"),
            address=option("--iamroles-agent-address"),
            allowed=option("--iamroles-allowed"),
            lanes=tuple(option("--iamroles-lane")),
            stage=option("--iamroles-stage"),
            require=option("--iamroles-require"),
            haproxy=option("--iamroles-haproxy"),
            scale=option("--iamroles-time-scale"),
            grade=option("--iamroles-grade"),
        )
    return config.stash[_SUBJECT]


# --- collecting --------------------------------------------------------------------------------------------


class ConformanceModule(pytest.Module):
    """`test_conformance.py`: its items are the checks, declared in the catalogue's data, not in Python."""

    def collect(self) -> Iterator[CheckItem]:
        """One item for each check of the lanes asked for; starts nothing."""
        from iamroles_scenarios.base.errors import DocumentError, SelectionError  # noqa: PLC0415

        try:
            planned = _subject(self.config).planned()
        except (SelectionError, DocumentError) as error:
            raise self.CollectError(str(error)) from error
        # xdist tells its scheduler of a group by a suffix of the id. 3.8 adds it itself, but not under
        # pytest 9.2 (pytest-xdist issue 1386), where the checks would be spread.
        suffix = f"@{_GROUP}" if getattr(self.config.option, "loadgroup", False) else ""
        for check in planned:
            nodeid = f"{self.nodeid}::{check.name}{suffix}"
            yield CheckItem.from_parent(self, name=check.name, check=check, nodeid=nodeid)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Take over the one file of this package whose tests are data."""
    if module_path.name != "test_conformance.py" or module_path.parent.name != _HERE.name:
        return None
    if module_path.parent.resolve() != _HERE.resolve():
        raise parent.CollectError(
            f"The suite is installed in {_HERE}, which is not this folder. Install this checkout by "
            f"`pip install -e`, or run `pytest --pyargs {_HERE.name}`."
        )
    module: pytest.Module = ConformanceModule.from_parent(parent, path=module_path)
    return module


class CheckItem(pytest.Item):
    """One check in one lane."""

    def __init__(self, *, check: PlannedCheck, **kwargs: Any) -> None:  # noqa: ANN401 - pytest's own
        super().__init__(**kwargs)
        self.check = check
        self.user_properties.append(("requirements", " ".join(check.requirements)))
        self.add_marker(pytest.mark.iamroles)
        if self.config.pluginmanager.hasplugin("xdist"):
            self.add_marker(pytest.mark.xdist_group(_GROUP))

    def runtest(self) -> None:
        """Wait for the check's result and say it in pytest's words."""
        from iamroles_conformance.reports import explain  # noqa: PLC0415
        from iamroles_conformance.reports.statement import holds  # noqa: PLC0415
        from iamroles_scenarios.declarations.results import Verdict  # noqa: PLC0415

        result = _running(self.session).result(self.check)
        self.config.stash[_RESULTS].append((self.check, result))
        self.user_properties.append(("verdict", result.verdict.value))
        if result.verdict is Verdict.NOT_APPLICABLE:
            pytest.skip(f"not applicable: {result.message}")
        if result.verdict is Verdict.KNOWN_FAILURE:
            pytest.xfail(result.message)
        if result.verdict is Verdict.PASS:
            return
        text = explain.failure(self.check, result, self._again(), self.config.stash[_TOLD])
        if holds([result.verdict.value], _subject(self.config).grade):
            with warnings.catch_warnings():  # whatever `-W error` says: what is permitted fails nobody
                warnings.simplefilter("always", ConformanceWarning)
                warnings.warn(ConformanceWarning(text), stacklevel=1)
        else:
            raise ConformanceFailure(text)

    def _again(self) -> str:
        options = _subject(self.config).arguments("--iamroles-")
        return shlex.join(["pytest", *options, f"{self.path}::{self.name}"])

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:  # noqa: ANN401
        """The explanation alone: a Python traceback would be of the engine, not of the agent."""
        if isinstance(excinfo.value, ConformanceFailure):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Place it in a report."""
        return self.path, None, self.check.name


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker that all checks carry."""
    config.addinivalue_line("markers", "iamroles: a conformance check of the role-check contract")


# --- the run -----------------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Bring up the stage for the checks that were selected, unless xdist spreads them."""
    config = session.config
    spread = config.getoption("numprocesses", None) or hasattr(config, "workerinput")
    checks = [isinstance(item, CheckItem) for item in session.items]
    if checks and all(checks) and config.pluginmanager.hasplugin("logging-plugin"):
        # It walks all loggers before each item (pytest 9.1), and fails if a thread of the run makes one then.
        config.pluginmanager.unregister(name="logging-plugin")
    if not (config.option.collectonly or spread) and any(checks):
        _running(session)


def _running(session: pytest.Session) -> Run:
    """The run of the checks that were selected; a stage that cannot work ends pytest with 3.

    Under xdist a worker starts it when its first check is due. With `--dist loadgroup` that is one worker,
    which plays all of them side by side as a run without xdist does; else each plays what it is asked for.
    """
    config = session.config
    if _RUN in config.stash:
        return config.stash[_RUN]
    from iamroles_conformance.reports import bundle, report  # noqa: PLC0415
    from iamroles_scenarios.base.errors import Mistake, StageError  # noqa: PLC0415

    try:
        for name, prepare in (("report", report.prepared), ("evidence", bundle.prepared)):
            if path := config.getoption(f"--iamroles-{name}"):
                prepare(Path(path))
        directory = config.getoption("--iamroles-report")
        with report.of_this_run(Path(directory) if directory else None):
            planned = [item.check for item in session.items if isinstance(item, CheckItem)]
            run = _subject(config).run(planned, transcripts=bool(config.getoption("--iamroles-evidence")))
            config.add_cleanup(run.close)
            with _uncaptured(config):  # that an image is built must be seen while it is built
                run.open()
    except (Mistake, ConformanceError) as error:
        raise pytest.UsageError(str(error)) from error
    except StageError as error:
        pytest.exit(f"the stage cannot be used: {error}", returncode=ExitCode.STAGE_FAULT)
    config.stash[_RUN] = run
    config.stash[_RESULTS] = []
    config.stash[_TOLD] = set()
    if _has_all(config):
        run.start()
    return run


def _uncaptured(config: pytest.Config) -> AbstractContextManager[None]:
    capturing = config.pluginmanager.getplugin("capturemanager")
    found: AbstractContextManager[None] = (
        capturing.global_and_fixture_disabled() if capturing else nullcontext()
    )
    return found


def _has_all(config: pytest.Config) -> bool:
    """Every check comes to this process; by `loadgroup` a worker knows the `--dist` of xdist."""
    return not hasattr(config, "workerinput") or getattr(config.option, "loadgroup", False)


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Say which agent is judged, on which stage, and why on that stage."""
    run = config.stash.get(_RUN, None)
    if run is None:
        return []
    lines = [f"iamroles: judging {run.agent.name} {run.agent.version}".rstrip()]
    if run.stage is not None:
        lines[0] += f", HAProxy {run.haproxy_version or 'not needed'}"
        lines.append(f"iamroles: {run.stage.why}")
    if run.host:
        lines.append(f"iamroles: {run.host}")
    return lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a line for each reason why checks are not applicable, not one for each check."""
    reports = terminalreporter.getreports("skipped")
    skipped = [one for one in reports if _SKIPPED in getattr(one, "user_properties", ())]
    for reason, count in Counter(one.longrepr[2] for one in skipped).items():
        terminalreporter.write_line(f"{count} checks {reason.removeprefix('Skipped: ')}")
    config: pytest.Config = terminalreporter.config
    results = config.stash.get(_RESULTS, [])
    if results and _has_all(config):
        from iamroles_conformance.reports import report  # noqa: PLC0415

        found = report.document(_subject(config), config.stash[_RUN], results)
        for line in report.sentences(found):
            terminalreporter.write_line(line)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Stop everything; write the report where one was asked for."""
    config = session.config
    terminal = config.pluginmanager.getplugin("terminalreporter")  # xdist's workers have none
    failed = terminal.getreports("failed") if terminal else []
    untestable = [one for one in failed if _UNTESTABLE in getattr(one, "user_properties", ())]
    if session.exitstatus == pytest.ExitCode.TESTS_FAILED and 0 < session.testsfailed == len(untestable):
        session.exitstatus = ExitCode.UNTESTABLE
    run = config.stash.get(_RUN, None)
    if run is None:
        return
    run.close()
    directory, evidence = (config.getoption(f"--iamroles-{name}") for name in ("report", "evidence"))
    results = config.stash[_RESULTS]
    if (directory or evidence) and results and _has_all(config):
        from iamroles_conformance.reports import bundle, report  # noqa: PLC0415

        found = report.document(_subject(config), run, results)
        if directory:
            report.write(found, Path(directory))
        if evidence:
            bundle.write(Path(evidence), found, {check.name: result for check, result in results})
