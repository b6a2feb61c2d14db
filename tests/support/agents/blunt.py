"""An agent that gives everybody the same answer: what a broken vendor agent looks like to the suite.

python blunt.py allow|deny|silent|garbage
"""

import sys

import puppet

ANSWERS = {
    "allow": {"status": 200, "backend": "orders-ro", "rule": "R1", "allow": True},
    "deny": {"status": 401, "reason": "no_credentials", "allow": False},
    "garbage": {"_broken": True},
}


class Handler(puppet.Handler):
    says = "deny"

    def answer(self, frame):
        if self.says in ANSWERS:
            self.acknowledge(frame, ANSWERS[self.says])


if __name__ == "__main__":
    Handler.says = sys.argv[1]
    puppet.main(Handler)
