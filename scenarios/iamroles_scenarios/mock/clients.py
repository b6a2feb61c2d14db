"""The suite's side of the mocks: `IdpClient`, `CloudClient`, and what they hand out."""

from iamroles_scenarios.mock.cloud_client import Account, CloudClient, trusting
from iamroles_scenarios.mock.control_client import IdpClient, IssuerHandle
from iamroles_scenarios.mock.presign import SessionKeys

__all__ = [
    "Account",
    "CloudClient",
    "IdpClient",
    "IssuerHandle",
    "SessionKeys",
    "trusting",
]
