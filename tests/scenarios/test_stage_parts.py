"""Pieces of the stage by themselves: agent.toml, output, finding programs, names of images."""

import io
import itertools
import os
import re
import resource
import signal
import subprocess
import sys
import tarfile
from contextlib import closing, nullcontext
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iamroles_scenarios.base.errors import CheckFailed, StageError, Untestable
from iamroles_scenarios.checks.fault import host
from iamroles_scenarios.checks.fault.host import ends_by
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.stage import AgentSpec, haproxies, images
from iamroles_scenarios.stage.composer import Composer
from iamroles_scenarios.stage.guard import Guard
from iamroles_scenarios.stage.images import PARTS, TOOLS, beside, digest, pack, requirements, source
from iamroles_scenarios.stage.output import Output, chunked_lines
from iamroles_scenarios.stage.part import json_with
from iamroles_scenarios.stage.process import Child
from iamroles_scenarios.stage.reference import reference_agent
from iamroles_scenarios.stage.spec import FEATURES, find_program

ROOT = Path(__file__).parents[2]


def test_the_reference_agent_is_described_by_the_contract():
    spec = AgentSpec.load(ROOT / "conformance" / "agent.toml")

    assert spec.command == ("iamroles", "agent", "run")
    assert Path(spec.argv()[0]).parent == Path(sys.executable).parent
    assert spec.reload_signal_name == "SIGHUP"
    assert reference_agent().features == spec.features


@pytest.mark.parametrize(
    ("line", "ready"),
    [
        *(('{"ready": true, "address": "a:1"}', True), ('{"ready": false, "why": "no keys yet"}', False)),
        *(('{"level": "info"}', False), ("[true]", False), ("{", False)),
    ],
)
def test_only_who_says_so_is_ready(line, ready):
    assert (json_with(line, "ready") is not None) is ready


_LAUNCH = 'spec = 1\n[launch]\naddress = "a:1"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spec = 1\n", "launch: needs exactly one of command, image and address"),
        ('spec = 2\n[launch]\naddress = "a:1"', ":1: spec: must be 1"),
        ('spec = 1\n[launch]\naddress = "a:1"\nimage = "i"', "needs exactly one"),
        ('spec = 1\n[launch]\ncommand = "run me"', "must be a list of strings"),
        ('spec = 1\n[launch]\naddress = "a:1"\nport = 1', r"launch\.port: unknown key; known are address"),
        ('spec = 1\ncolour = "red"', "colour: unknown key"),
        ('spec = 1\nname = 3\n[launch]\naddress = "a:1"', "name: must be a string"),
        (f'{_LAUNCH}[features]\nreload = "SIGFOO"', r"features\.reload: is 'SIGFOO'; write a signal"),
        (f"{_LAUNCH}[features]\nreload = true", r"features\.reload: is True; write a signal"),
        (f"{_LAUNCH}[features]\nodic = true", r":5: features\.odic: unknown key; did you mean oidc\?"),
        (f'{_LAUNCH}[features]\noidc = "yes"', r"features\.oidc: is 'yes'; write true or false"),
        (f"{_LAUNCH}[features]\nlimits = 1", r"features\.limits: is 1; write true or false"),
        (f"{_LAUNCH}[haproxy]\nrendr = []", r"haproxy\.rendr: unknown key; did you mean render\?"),
        (f'{_LAUNCH}ready_within = "2s"', r"launch\.ready_within: must be a number above 0"),
        (f"{_LAUNCH}env = {{ A = 1 }}", r":4: launch\.env\.A: must be a string"),
        (f'{_LAUNCH}[haproxy]\nrender = "x"', r"haproxy\.render: must be a list"),
        (f"{_LAUNCH}[haproxy]\nsettings = {{ A = 1 }}", r"haproxy\.settings\.A: must be a string"),
        (f"{_LAUNCH}[haproxy]\nrender = []", r":5: haproxy\.render: is empty; name the command"),
        (f'{_LAUNCH}[haproxy.settings]\nIAM_TIMEOUT_PROCESSING = "x"', r":5: .*: 'x' is not a duration"),
        ('spec = 1\n[launch]\naddress = "x"', r"launch\.address: is 'x'; write host:port"),
        (f'{_LAUNCH}[known_failures]\n"a.b" = 3', r":5: known_failures\.a\.b: must be a string"),
        ("spec =", "is not TOML"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_agent_toml_names_file_line_key_and_remedy(tmp_path, text, message):
    path = tmp_path / "agent.toml"
    if text is not None:
        path.write_text(text)

    with pytest.raises(StageError, match=message) as caught:
        AgentSpec.load(path)

    assert str(path) in caught.value.message


def test_a_program_is_found_beside_agent_toml_then_beside_this_python(tmp_path):
    assert find_program("python3", tmp_path) == sys.executable
    assert find_program("pytest", tmp_path) == str(Path(sys.executable).parent / "pytest")
    (tmp_path / "run.sh").touch()
    assert find_program("./run.sh", tmp_path) == find_program("run.sh", tmp_path) == str(tmp_path / "run.sh")
    (tmp_path / "pytest").touch()  # as `agent.toml` means it
    assert find_program("pytest", tmp_path) == str(tmp_path / "pytest") != find_program("pytest", None)
    with pytest.raises(StageError, match="neither in"):
        find_program("no-such-program", tmp_path)


def test_output_is_waited_for_from_a_mark():
    output = Output("test", iter([b"one\n", b"two\n", b"one\n"]))

    assert output.wait(lambda line: line == "two", within=5) == "two"
    assert output.finish()
    assert output.mark == 3
    assert output.wait(lambda line: line == "two", within=5, since=2) is None
    assert output.lines(since=2) == ["one"]
    assert output.tail(2) == "two\none"


def test_output_that_ends_ends_the_wait_at_once():
    assert Output("test", iter([])).wait(lambda line: True, within=60) is None


def test_output_that_stays_silent_ends_at_the_deadline():
    reader = io.BytesIO(b"noise\n")

    assert Output("test", reader).wait(lambda line: line == "never", within=0.05) is None


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8))
def test_lines_do_not_depend_on_how_a_stream_is_cut(data, cuts):
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    chunks = [data[a:b] for a, b in itertools.pairwise(places)]

    lines = list(chunked_lines(chunks))

    assert lines == [*data.split(b"\n")[:-1], *([tail] if (tail := data.split(b"\n")[-1]) else [])]


_PLAIN = st.text(st.characters(exclude_characters="{"), max_size=8)
"""hypothesis draws words of the source too, `{sts}` among them."""
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | _PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.dictionaries(st.text(min_size=1, max_size=5).filter(lambda key: key != "backends"), _JSON, max_size=4)
)
def test_a_document_without_placeholders_stays_what_it_is(policy):
    assert Composer(None, {"idp": "http://i", "sts": "http://s"}).document(policy) == policy


def test_placeholders_are_replaced_wherever_they_are():
    composer = Composer(None, {"idp": "http://i", "sts": "http://s"})

    document = composer.document({"a": ["{idp}/x", {"b": "{sts}{idp}"}], "c": "{other}"})

    assert document == {"a": ["http://i/x", {"b": "http://shttp://i"}], "c": "{other}"}


def test_haproxy_is_chosen_by_version_path_or_variable(monkeypatch):
    wheel = haproxies.find("wheel")

    assert haproxies.version(wheel).startswith("2.8.")
    assert haproxies.find(wheel) == wheel
    assert haproxies.version(haproxies.find("2.8")).startswith("2.8.")
    monkeypatch.setenv(haproxies.VARIABLE, "wheel")
    assert haproxies.find() == wheel
    monkeypatch.delenv(haproxies.VARIABLE)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert haproxies.find()


def test_an_images_name_follows_its_content():
    assert digest({"a": b"1", "b": b""}, "base") == digest({"b": b"", "a": b"1"}, "base")
    assert len({digest({"a": b"1"}, "x"), digest({"a": b"2"}, "x"), digest({"a": b"1"}, "y")}) == 3
    assert pack({"a": b"1"}) == pack({"a": b"1"})
    with tarfile.open(fileobj=io.BytesIO(pack({"a": b"1"}, at=1.5))) as archive:
        assert archive.getmember("a").mtime == 1.5  # two files of the same second differ


def test_the_image_has_the_project_and_not_the_suites_tools():
    names = [name.partition("[")[0].partition(">")[0] for name in requirements("conformance", without=TOOLS)]

    assert {"click", "cryptography", "moto", "boto3"} <= set(names)
    assert not {"pytest", "docker", "locust", "mypy"} & set(names)
    files = source(*PARTS)
    assert "source/iamroles_tools/haproxy/haproxy.cfg" in files
    assert any(path.endswith("dist-info/entry_points.txt") for path in files)
    assert not any("__pycache__" in path for path in files)
    suite = source(*PARTS, "iamroles_conformance") | beside()
    assert {
        "source/iamroles_conformance/SPEC.md",
        "source/iamroles_scenarios/data/policy.schema.json",
    } <= set(suite)


def test_checks_need_declarable_features_only():
    assert {feature for check in plan() for feature in check.features} <= FEATURES.keys()


WAITS = [sys.executable, "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def guard():
    with closing(Guard()) as guard:
        yield guard


def test_what_was_reaped_is_signalled_no_more(guard, monkeypatch):
    """Its number may be somebody else's by then."""
    child = Child("short", [sys.executable, "-c", "raise SystemExit(7)"], guard)
    assert (child.wait(30.0), child.alive) == (7, False)
    os.killpg(child.pid, 0)  # the number is still its own
    assert child.kill() == 7

    def refuse(*_told):
        raise AssertionError("a number that may be another's was signalled")

    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", refuse)
        patched.setattr(os, "killpg", refuse)
        child.send(signal.SIGTERM)
        child.resume()
        assert (child.stop(), child.kill(), child.wait(0.0)) == (7, 7, 7)


def test_an_interrupt_waits_until_the_guard_knows_what_was_started(guard):
    started = []

    def interrupted(*given, **more):
        started.append(subprocess.Popen(*given, **more))
        os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C before it is noted
        return started[0]

    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            Child("long", WAITS, guard, popen=interrupted)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        guard.close()
        assert started[0].wait(30.0) == -signal.SIGKILL
    finally:
        signal.signal(signal.SIGINT, former)


def test_a_process_that_goes_on_is_waited_for_and_stopped(guard):
    child = Child("long", WAITS, guard)

    assert (child.wait(0.01), child.alive) == (None, True)
    assert child.stop() == -signal.SIGTERM


def test_a_build_says_when_it_starts_and_ends(capsys):
    with images._announced("iamroles/parts", "debian:trixie-slim"):
        assert "Building the image iamroles/parts from debian:trixie-slim" in capsys.readouterr().err

    assert re.search(r"^Built the image iamroles/parts in \d+ s$", capsys.readouterr().err, re.MULTILINE)


def test_a_process_that_ends_by_a_signal_neither_ignores_nor_catches_it():
    assert not ends_by(os.getpid(), signal.SIGXFSZ), "Python ignores it"
    with subprocess.Popen(["/bin/sleep", "60"]) as plain:
        assert ends_by(plain.pid, signal.SIGXFSZ)
        plain.kill()
        os.waitid(os.P_PID, plain.pid, os.WEXITED | os.WNOWAIT)
        assert not ends_by(plain.pid, signal.SIGXFSZ), "it has ended"


@pytest.mark.parametrize(("after", "killed"), [([1, 2], False), ([1, 4], True)])
def test_a_helper_that_ends_by_itself_was_not_killed(monkeypatch, after, killed):
    families = iter([[1, 2, 3], [1, 2]])  # 3 is a helper, 4 another worker in place of 2
    monkeypatch.setattr(host, "_processes", lambda _: next(families, after))
    here = MagicMock(people=["?"], seconds=lambda _: -1.0, failed=CheckFailed)
    here.__enter__.return_value = here
    monkeypatch.setattr(host, "fault_bench", lambda _: here)
    monkeypatch.setattr(host, "_starved", lambda *_: nullcontext(MagicMock()))
    monkeypatch.setattr(host, "_Waits", lambda _: nullcontext(MagicMock(deepest=host._DEEP)))

    with pytest.raises(CheckFailed, match="it killed its own") if killed else nullcontext():
        host.cpu(None)


@pytest.mark.parametrize(("lasting", "killed"), [([1], False), ([1, 2], True)])
def test_a_full_disk_is_judged_though_a_helper_ends_by_itself(monkeypatch, lasting, killed):
    families, gone = iter([[1, 2]]), set()
    monkeypatch.setattr(host, "_processes", lambda _: next(families, lasting))
    monkeypatch.setattr(host, "_limited", lambda *_: nullcontext())
    monkeypatch.setattr(host, "ends_by", lambda pid, _: pid not in gone)

    disk = host._full_disk(MagicMock(seconds=lambda _: -1.0))
    with pytest.raises(Untestable) if killed else nullcontext(), disk:
        gone.add(2)


def test_a_process_that_has_ended_needs_no_limit(monkeypatch):
    with subprocess.Popen(["/bin/true"]) as helper:
        helper.wait()
    monkeypatch.setattr(host, "_processes", lambda _: [helper.pid])
    with host._limited(None, resource.RLIMIT_NOFILE, host._descriptors):
        pass
