"""The reference agent with one kind of credential: `python only.py oidc|sts agent run`."""

import sys

from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.main import main
from iamroles_agent.tokens.authenticator import Authenticator
from iamroles_agent.tokens.sts import PREFIX

sound = Authenticator._verify


async def only(self, token, digest, source):
    if token.startswith(PREFIX) is not (sys.argv[1] == "sts"):
        raise Refusal(Reason.TOKEN_MALFORMED, "a kind of credential that this agent does not know")
    return await sound(self, token, digest, source)


if __name__ == "__main__":
    Authenticator._verify = only
    main(sys.argv[2:], prog_name="iamroles")
