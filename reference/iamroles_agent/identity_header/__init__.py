"""The signed identity header `X-IAM-Identity`, which a server can verify by itself (docs/backends.md).

The plain tags (`X-IAM-Principal`, `X-IAM-Role`) are only as safe as the network between HAProxy and the
server: any process that reaches the server can write them. A short JWT that the agent signs for a single
backend is valid wherever it is read. `keys` holds the keys of a single agent and their times, `shared`
derives keys that several agents share, `signer` makes the tokens. None reads a clock, a file or a socket.
"""

from iamroles_agent.identity_header.keys import KeyRing as KeyRing
from iamroles_agent.identity_header.shared import SharedRing as SharedRing
from iamroles_agent.identity_header.shared import secrets_to_bytes as secrets_to_bytes
from iamroles_agent.identity_header.signer import LONGEST_LIFE as LONGEST_LIFE
from iamroles_agent.identity_header.signer import Signed as Signed
from iamroles_agent.identity_header.signer import Signer as Signer
