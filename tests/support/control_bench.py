"""A control plane without processes: the clock is a number, members say what the test says."""

from itertools import chain

from iamroles_agent.control.channel import message, with_parts
from iamroles_agent.control.document import POLICY, Document, Part
from iamroles_agent.control.plane import Plane
from iamroles_agent.control.slots import FETCHER, LOADER, Fail, Fork, Kill, Print, Scheduled, Send

ONE = Part.of((b"one",), digest="one")
TWO = Part.of((b"t", b"wo"), digest="two")
THREE = Part.of((b"three",), digest="three")
_NAMES = {FETCHER: "fetcher", LOADER: "loader"}


def show(effect):
    """An effect as a line of a transcript; pings are left out by `Bench.did`."""
    match effect:
        case Fork(place, why):
            return f"fork {_NAMES.get(place, place)}" + (f": {why}" if why else "")
        case Kill(place, why):
            return f"kill {_NAMES.get(place, place)}: {why}"
        case Send(place, said):
            about = "".join(f" {said.head[key]}" for key in ("version", "topic", "id") if key in said.head)
            return f"{_NAMES.get(place, place)} < {said.say}{about}"
        case Print(line):
            return f"say {line}"
        case Fail(why):
            return f"fail: {why}"


class Bench:
    """A plane and its clock.

    Args:
        workers: how many.
        made: further arguments of the plane.
    """

    def __init__(self, workers=2, **made):
        self.now = 1000.0
        self.scheduled = {}
        self.plane = Plane(
            Document(1, {POLICY: ONE}),
            workers,
            clock=lambda: self.now,
            scheduled=lambda index: self.scheduled.get(index, Scheduled()),
            **made,
        )
        self.sent = []
        self.said = []
        self.pids = 100

    def did(self):
        """Return what is to be done now, forks done at once."""
        lines, effects = [], iter(self.plane.take, [])
        for effect in chain.from_iterable(effects):
            if isinstance(effect, Send):
                self.sent.append((effect.slot, effect.message))
                if effect.message.say == "ping":
                    continue
            if isinstance(effect, Print):
                self.said.append(effect.line)
            lines.append(show(effect))
            if isinstance(effect, Fork):
                self.pids += 1
                self.plane.forked(effect.slot, self.pids)
        return lines

    def hears(self, index, say, piece=b"", /, **head):
        """A member says something; what is to be done then."""
        self.plane.heard(index, message(say, piece, **head))
        return self.did()

    def dies(self, index, how="signal 9"):
        """A process ends."""
        self.plane.died(index, how)
        return self.did()

    def passes(self, seconds, *, but=(), step=0.25):
        """Time passes in steps; all members answer their pings, but these."""
        lines, end = [], self.now + seconds
        while self.now < end - 1e-9:
            self.now = min(self.now + step, end)
            for index, slot in self.plane.members.slots.items():
                if index not in but and slot.pid:
                    self.plane.heard(index, message("pong", n=0, stats={}))
            self.plane.tick()
            lines += self.did()
        return lines

    def up(self):
        """Everybody serves; the ready line was said."""
        self.plane.start()
        self.did()
        for index in self.plane.members.slots:
            self.comes_up(index)
        assert self.said[-1] == {"ready": True}
        return self

    def comes_up(self, index):
        """A newborn gets ready; a worker serves if it may."""
        lines = self.hears(index, "up", version=self.plane.members.slots[index].version)
        if f"{index} < serve" in lines:
            lines += self.hears(index, "serving")
        return lines

    def gone(self, index):
        """A process dies; what is to be done until a moment later."""
        return self.dies(index) + self.passes(0.25)

    def replaced(self, index):
        """A process dies, and another comes up in its place; what the latter is to do."""
        self.gone(index)
        return self.comes_up(index)

    def all_say(self, say, version, *, but=()):
        """All members say one thing."""
        lines = []
        for index in self.plane.members.slots:
            if index not in but:
                lines += self.hears(index, say, version=version)
        return lines

    def confirmed(self, version):
        """All prepare a version and switch to it."""
        self.all_say("prepared", version)
        return self.all_say("switched", version)

    def hangs_up(self):
        """SIGHUP."""
        self.plane.load()
        return self.did()

    def loads(self, part):
        """SIGHUP, and a loader that likes the file."""
        lines = self.hangs_up()
        lines += self._sends(LOADER, with_parts("loaded", {POLICY: part}))
        return lines + self.dies(LOADER, "status 0")

    def proposes(self, name, part, number):
        """The fetcher proposes a part."""
        return self._sends(FETCHER, with_parts("propose", {name: part}, id=number))

    def _sends(self, index, messages):
        for said in messages:
            self.plane.heard(index, said)
        return self.did()


def without(lines, *words):
    """A transcript without lines that hold one of these."""
    return [line for line in lines if not any(word in line for word in words)]
