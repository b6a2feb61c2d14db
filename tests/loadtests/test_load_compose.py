"""The compose file: two agents, two workers, one report, nothing left behind."""

import json
import os
import subprocess

import jsonschema
import pytest
from click.testing import CliRunner

from iamroles_loadtests.commands.load import load
from iamroles_loadtests.histogram import Histogram
from iamroles_loadtests.result import SCHEMA


@pytest.mark.timeout(900)
def test_one_command_runs_it_and_workers_add_up(engine, pytestconfig, tmp_path):
    if subprocess.run(["docker", "compose", "version"], check=False, capture_output=True).returncode:
        wanted = pytestconfig.getoption("--iamroles-require") or os.environ.get("IAMROLES_REQUIRE")
        say = pytest.fail if wanted == "containers" else pytest.skip
        say("needs the compose plugin of Docker: apt-get install docker-compose")
    place = tmp_path / "load"
    done = CliRunner().invoke(
        load, ["compose", "--rate", "300", "--duration", "5", "--workers", "2", "--directory", str(place)]
    )

    assert done.exit_code in (0, 4), done.output[-3000:]  # 4: this host is busy, and the run says so
    result = json.loads((place / "out" / "result.json").read_text())
    jsonschema.validate(result, json.loads(SCHEMA.read_text()))
    assert result["wrong"] == result["faults"] == 0, result["examples"]
    [phase] = result["phases"]
    assert phase["stamped"]
    assert phase["samples"] > 300
    # Cases of both workers, counted once, and the same sum in the windows and in locust's own statistics.
    cases = sum(Histogram.decoded(case["sent"]["histogram"]).count for case in phase["cases"].values())
    assert cases == sum(window["samples"] for window in phase["windows"]) == phase["samples"]
    total = (place / "out" / "locust_stats.csv").read_text().splitlines()[-1].split(",")
    assert total[1] == "Aggregated"
    assert int(total[2]) == phase["samples"]
    assert "<svg" in (place / "out" / "index.html").read_text()
    project = (place / ".env").read_text().split("IAMROLES_PROJECT=")[1].splitlines()[0]
    left = subprocess.run(
        ["docker", "ps", "-aq", "--filter", f"label=com.docker.compose.project={project}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert left.stdout == ""
