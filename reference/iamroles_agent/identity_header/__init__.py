"""The signed identity header `X-IAM-Identity`: what a server can verify by itself (docs/backends.md).

The plain tags (`X-IAM-Principal`, `X-IAM-Role`) are as good as the network between HAProxy and the server:
whoever reaches the server can write them. A short JWT, signed by the agent for one backend, is good wherever
it is read. `keys` holds the signing keys and says when they change, `signer` makes the tokens. Neither reads
a clock, a file or a socket: who owns the keys keeps them and hands them out.
"""

from iamroles_agent.identity_header.keys import KeyRing as KeyRing
from iamroles_agent.identity_header.signer import LONGEST_LIFE as LONGEST_LIFE
from iamroles_agent.identity_header.signer import Signed as Signed
from iamroles_agent.identity_header.signer import Signer as Signer
