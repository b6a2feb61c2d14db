"""The compose file: two agents, two workers, one report, nothing left behind."""

import json
import os
import threading
import time

import jsonschema
import pytest
from invoking import finished, said

from iamroles_loadtests.locusting import composed
from iamroles_loadtests.measuring.histogram import Histogram
from iamroles_loadtests.results.result import SCHEMA


@pytest.fixture
def compose(engine, pytestconfig):
    """Docker's compose plugin."""
    if finished("docker", "compose", "version").returncode:
        wanted = pytestconfig.getoption("--iamroles-require") or os.environ.get("IAMROLES_REQUIRE")
        say = pytest.fail if wanted == "containers" else pytest.skip
        say("needs the compose plugin of Docker: apt-get install docker-compose")


def containers(place, *more):
    """Return those of the project whose files are there."""
    project = (place / ".env").read_text().split("IAMROLES_PROJECT=")[1].splitlines()[0]
    label = f"label=com.docker.compose.project={project}"
    return finished("docker", "ps", "-q", "--filter", label, *more, check=True).stdout.split()


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("compose")
def test_one_command_runs_it_and_workers_add_up(tmp_path):
    place = tmp_path / "load"
    words = "load compose --rate 300 --duration 5 --workers 2 --directory"
    said(words, place, code=(0, 4))  # 4: this host is busy, and the run says so

    result = json.loads((place / "out" / "result.json").read_text())
    jsonschema.validate(result, json.loads(SCHEMA.read_text()))
    assert result["wrong"] == result["faults"] == 0, result["examples"]
    assert result["reproduce"].endswith("--workers 2 --connections 64 --haproxy 3.0")
    [phase] = result["phases"]
    assert phase["stamped"]
    assert phase["samples"] > 300
    # Cases of both workers, counted once, and the same sum in the windows and in locust's own statistics.
    cases = sum(Histogram.decoded(case["sent"]["histogram"]).count for case in phase["cases"].values())
    assert cases == sum(window["samples"] for window in phase["windows"]) == phase["samples"]
    total = (place / "out" / "locust_stats.csv").read_text().splitlines()[-1].split(",")
    assert (total[1], int(total[2])) == ("Aggregated", phase["samples"])
    assert "<svg" in (place / "out" / "index.html").read_text()
    assert containers(place, "-a") == []

    # The line that the file names runs it again, to the same end.
    (place / "out" / "result.json").unlink()
    line = ["docker", "compose", "--project-directory", str(place)]
    try:
        again = finished(*line, "up", "--exit-code-from", "master")
    finally:
        finished(*line, "down", "--volumes", "--timeout", "2", check=True)
    assert again.returncode in (0, 4), again.stdout[-3000:]
    assert json.loads((place / "out" / "result.json").read_text())["faults"] == 0


@pytest.mark.parametrize(("written", "code"), [(True, 1), (False, 3)])
def test_a_docker_that_fails_misses_no_objectives(tmp_path, monkeypatch, written, code):
    """`docker compose up` ends with 1 of its own, too, for example if it cannot fetch an image."""
    result = tmp_path / "out" / "result.json"
    result.parent.mkdir()
    monkeypatch.setattr(composed, "prepare", lambda *_, **__: None)
    monkeypatch.setattr(composed, "up", lambda _: (written and result.touch()) or 1)

    said("load compose --directory", tmp_path, code=code)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("compose")
def test_a_worker_that_dies_ends_it_without_a_report(tmp_path):
    place = tmp_path / "load"
    (place / "out").mkdir(parents=True)
    (place / "out" / "result.json").write_text("of an earlier run")
    course = place / "out" / "locust_stats_history.csv"
    killed = []

    def kill():
        while not (course.exists() and "Aggregated" in course.read_text()):
            time.sleep(0.1)
        worker = containers(place, "--filter", "label=com.docker.compose.service=worker")[0]
        killed.append(finished("docker", "kill", worker, check=True))

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    told = said("load compose --rate 200 --duration 12 --workers 2 --directory", place, code=3)

    assert len(killed) == 1
    assert not (place / "out" / "result.json").exists()
    assert "written to" not in told
    assert containers(place, "-a") == []
