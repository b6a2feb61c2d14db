"""The page of a result: whole in itself, escaped, drawn for every kind of run."""

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest

from iamroles_loadtests import charts, page, result

EXAMPLE = Path(__file__).with_name("example-result.json")


@pytest.fixture
def example():
    return result.load(EXAMPLE)


class Outline(HTMLParser):
    """Tags, and attributes that would fetch something."""

    def __init__(self):
        super().__init__()
        self.tags, self.fetched = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [
            value for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}
        ]


def outline(text):
    found = Outline()
    found.feed(text)
    return found


def test_the_example_follows_the_schema(example):
    jsonschema.validate(example, json.loads(result.SCHEMA.read_text()))


def test_the_page_needs_no_network(example):
    text = page.render(example)
    found = outline(text)

    assert found.fetched == []
    assert not {"script", "link", "img", "iframe"} & set(found.tags)
    assert "url(" not in text
    assert "@import" not in text
    # A curve and a course for each phase, the knee, the CPU, the intervals and the lanes.
    assert found.tags.count("svg") == 2 * len(example["phases"]) + 4
    assert "nan" not in re.sub(r"<style>.*</style>", "", text, flags=re.DOTALL).lower()


def test_what_a_run_did_not_have_is_not_shown(example):
    bare = {**example, "knee": None, "pairs": None, "phases": example["phases"][:1]}

    assert outline(page.render(bare)).tags.count("svg") == 3


def test_a_phase_without_answers_is_drawn(example):
    empty = copy.deepcopy(example["phases"][0])
    none = result.shown(result.Histogram())
    for name in ("due", "sent", "noticed", "lag", "punctual"):
        empty[name] = none
    empty |= {"samples": 0, "cases": {}, "windows": [], "closed": True, "rate": 0.0}

    assert "closed loop" in page.render({**example, "phases": [empty]})


def test_what_a_server_said_is_text(example):
    hostile = "<script>alert(1)</script>"
    text = page.render({**example, "examples": [hostile], "doubts": [hostile], "reproduce": hostile})

    assert "script" not in outline(text).tags
    assert text.count("&lt;script&gt;") == 3


def test_events_and_stalls_are_marked(example):
    changed = copy.deepcopy(example)
    phase = changed["phases"][0]
    phase["stalls"] = [[1.0, 120.0]]
    changed["events"] = [{"at": phase["begin"] + 1.5, "what": "keys <rotated>"}]
    text = page.render(changed)

    assert "generator 120 ms" in text
    assert "keys &lt;rotated&gt;" in text


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 97), (-3, 900), (-800, 0.5), (0, 12_345), (0, 1e-12)])
def test_axes_hold_their_values(low, high):
    axis = charts.linear(high, "x", low=low)

    assert axis.low <= low <= high <= axis.high + 1e-9
    assert 2 <= len(axis.ticks) <= 9
    assert axis.share(axis.low) == 0
    assert axis.share(axis.high) == 1


@pytest.mark.parametrize("values", [[], [0.0], [37.0], [10, 20], [0.2, 5e6]])
def test_latency_axes_hold_their_values(values):
    axis = charts.microseconds(values)

    assert all(axis.low <= value <= axis.high for value in values if value)
    assert len(axis.ticks) >= 2
