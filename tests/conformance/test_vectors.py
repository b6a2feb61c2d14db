"""Vectors: the same each time, right about the reference agent, and wrong about broken ones."""

import json
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jsonschema
import pytest
from invoking import ran, said

from iamroles_conformance.reports import vectors
from iamroles_conformance.selftest.registry import mutants
from iamroles_conformance.selftest.runner import Selftest
from iamroles_conformance.subject import Subject
from iamroles_scenarios.declarations.scenario import WorldSpec, policy_of
from iamroles_scenarios.wire.asker import Asker

_FIRST = policy_of(WorldSpec(policy="orders"))
"""The policy that an agent starts with."""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fixed")
    command = [Path(sys.executable).parent / "iamroles", "conformance", "vectors", "--output", folder]
    subprocess.run(command, check=True)  # in a process of its own, which has keys of its own
    return folder


@pytest.fixture
def served(tmp_path):
    """A folder that is served as docs/vectors.md says, and its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _groups(folder, *names):
    for path in sorted((folder / "vectors").glob("*.json")):
        if path.stem in names or not names:
            yield from json.loads(path.read_text())["groups"]


def _right(permitted, answer):
    """Judge as docs/vectors.md tells a stranger to."""
    for name, values in permitted.items():
        got = None if answer.get(name) in (None, "") else answer[name]
        wanted = [None if value == "" else value for value in values]
        if not any(type(got) is type(value) and got == value for value in wanted):
            return False
    return True


def _wrong(agent, folder, *names):
    """Ask a running agent all vectors of these files; return the ids of those that it gets wrong."""
    found = []
    for group in _groups(folder, *names):
        taken = agent.reload({**group["policy"]}, within=60)
        if taken["reloaded"] is not group["loads"]:
            found.append(group["name"])
        with Asker(agent.spop_address, timeout=30) as asker:
            deadline = time.time() + 30
            asked = [one["question"] for one in group["vectors"]]
            while asked and time.time() < deadline:  # the key sets come when they are first wanted
                answers = asker.decide_many(asked[:8] + asked[-8:])
                if not any(one.get("reason") == "keys_unavailable" for one in answers):
                    break
            answers = asker.decide_many(asked) if asked else []
        found += [
            f"{one['id']}: {answer}"
            for one, answer in zip(group["vectors"], answers, strict=True)
            if not _right(one["permitted"], answer)
        ]
    return found


def _played(served, agent, *names):
    """Make a fresh set and ask it; again if this host was too late for the set's time."""
    folder, url = served
    only = "".join(f" --only {name}" for name in names)
    for _ in range(4):
        said(f"conformance vectors --now now --keys {url}{only} --output", folder)
        found = _wrong(agent, folder, *names)
        if time.time() < json.loads((folder / "index.json").read_text())["now"] + vectors.WITHIN:
            return found
    pytest.skip("this host is too busy to ask a set within a minute")


@pytest.mark.parametrize("name", ["orders", "identity", "policy", "reasons", "claims", "texts", "oracle"])
def test_the_reference_agent_gives_a_permitted_answer_to_each_vector(stage, served, name):
    with stage.world(Subject().spec(), _FIRST, haproxy=False) as world:
        assert _played(served, world.agent, name) == []


@pytest.mark.parametrize(
    ("mutant", "names"), [("gate.accepts-expired", ("orders",)), ("gate.ignores-method", ("policy",))]
)
def test_a_broken_agent_gives_wrong_answers(stage, served, mutant, names):
    spec = Selftest(stage, Subject().spec())._mutated([mutants()[mutant]])
    with stage.world(spec, _FIRST, haproxy=False) as world:
        assert _played(served, world.agent, *names)


def test_a_set_is_the_same_each_time_and_moves_with_its_clock(fixed, tmp_path):
    """A set of another time has the same questions and verdicts, but for times and signatures."""
    said("conformance vectors --now 1893456100 --output", tmp_path)
    same = []
    for one, other in zip(_groups(fixed), _groups(tmp_path), strict=True):
        assert one["policy"] == other["policy"]
        for a, b in zip(one["vectors"], other["vectors"], strict=True):
            assert a["id"] == b["id"]
            expires = [[value + 100 for value in a["permitted"].get("expires", []) if value]]
            expires += [[value for value in b["permitted"].get("expires", []) if value]]
            assert expires[0] == expires[1]
            assert {**a["permitted"], "expires": 0} == {**b["permitted"], "expires": 0}
            same.append(a["question"] == b["question"])
    assert sum(same) < len(same) / 4  # those without a token, or with one without times

    again = dict(vectors.files(vectors.NOW, vectors.KEYS))
    differing = []
    for path, content in again.items():
        written = json.loads((fixed / path).read_text())
        groups = zip(written.pop("groups", []), content.pop("groups", []), strict=True)
        assert json.loads(json.dumps(content)) == written
        differing += [
            a["id"]
            for one, other in groups
            for a, b in zip(one["vectors"], other["vectors"], strict=True)
            if a != b
        ]
    assert len(differing) == 5, differing


def test_a_set_is_as_its_schema_and_index_say(fixed):
    schema = json.loads((fixed / "schema.json").read_text())
    index = json.loads((fixed / "index.json").read_text())
    assert len(index["files"]) == 7
    jsonschema.Draft202012Validator.check_schema(schema)
    ids = []
    for entry in index["files"]:
        content = json.loads((fixed / entry["path"]).read_text())
        jsonschema.validate(content, schema)
        mine = [one["id"] for group in content["groups"] for one in group["vectors"]]
        assert (entry["groups"], entry["vectors"]) == (len(content["groups"]), len(mine))
        assert (fixed / entry["path"]).stat().st_size < 1 << 20
        ids += mine
    assert len(ids) == len(set(ids)) > 2000
    assert index["now"] == vectors.NOW
    kinds = [one["permitted"].get("allow") for group in _groups(fixed) for one in group["vectors"]]
    assert kinds.count([True]) > 300
    assert kinds.count([False]) > 1500
    assert any(not group["loads"] and not group["vectors"] for group in _groups(fixed, "oracle"))
    for path in (fixed / "jwks").iterdir():
        assert not any({"d", "p", "q"} & key.keys() for key in json.loads(path.read_text())["keys"])


@pytest.mark.parametrize(
    ("words", "told"),
    [("--now -1", "seconds since 1970"), ("--now 1e9", "seconds since 1970"), ("", "holds other files")],
)
def test_a_mistake_in_the_command_is_named(tmp_path, words, told):
    (tmp_path / "mine").touch()
    assert told in ran(f"conformance vectors {words} --output", tmp_path, code=2).output
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_unknown_name_leaves_the_former_output(tmp_path):
    said("conformance vectors --only texts --output", tmp_path)
    former = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    told = ran("conformance vectors --only texts --only typo --output", tmp_path, code=2).output
    assert "no file of vectors is named typo." in told
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == former
