"""Traffic: many connections driven by one epoll loop, timed by the kernel's stamps, every answer judged.

The meter (`iamroles_loadtests`) measures with it, and a check can put traffic under what it tests. It needs
nothing beyond the standard library. `loop` opens with how it works.
"""

from iamroles_scenarios.traffic.clients import Address, Client
from iamroles_scenarios.traffic.http import HttpClient
from iamroles_scenarios.traffic.loop import Loop, Tally
from iamroles_scenarios.traffic.questions import Case, Question, QuestionMix, Right
from iamroles_scenarios.traffic.records import FIELDS, Records
from iamroles_scenarios.traffic.spop import SpopClient
from iamroles_scenarios.traffic.timetable import Segment, arrivals

__all__ = [
    "FIELDS",
    "Address",
    "Case",
    "Client",
    "HttpClient",
    "Loop",
    "Question",
    "QuestionMix",
    "Records",
    "Right",
    "Segment",
    "SpopClient",
    "Tally",
    "arrivals",
]
