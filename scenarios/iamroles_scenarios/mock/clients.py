"""The suite's side of the mocks: `IdpClient`, `CloudClient`, and what they hand out."""

from iamroles_scenarios.mock.cloud_client import Account, CloudClient, trusting
from iamroles_scenarios.mock.control_client import ControlError, IdpClient, IssuerHandle, WaitTimeoutError
from iamroles_scenarios.mock.presign import SessionKeys

__all__ = [
    "Account",
    "CloudClient",
    "ControlError",
    "IdpClient",
    "IssuerHandle",
    "SessionKeys",
    "WaitTimeoutError",
    "trusting",
]
