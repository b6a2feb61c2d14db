"""Start a mock or a blunt agent as its own process; verify the tokens of a mock's issuers."""

import contextlib
import json
import select
import subprocess
import sys
from types import SimpleNamespace

import jwt
import urllib3

HTTP = urllib3.PoolManager(retries=False)


@contextlib.contextmanager
def running(module, *arguments):
    command = [sys.executable, "-m", f"iamroles_scenarios.{module}", "--exit-with-parent", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert select.select([process.stdout], [], [], 30)[0], f"{module} says nothing"
            line = process.stdout.readline()
            assert line, f"{module} ended with {process.wait(10)}"
            yield SimpleNamespace(process=process, ready=json.loads(line))
        finally:
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def fetch(url):
    answer = HTTP.request("GET", url, redirect=False)
    assert answer.status == 200
    return answer.json()


def verify(token, url):
    """As a relying party does: discovery, JWKS, signature, issuer, times; return the claims."""
    discovery = fetch(f"{url}/.well-known/openid-configuration")
    assert discovery["issuer"] == url
    keys = {key["kid"]: key for key in fetch(discovery["jwks_uri"])["keys"]}
    header = jwt.get_unverified_header(token)
    key = jwt.PyJWK(keys[header["kid"]], algorithm=header["alg"])
    return jwt.decode(token, key, [header["alg"]], issuer=url, options={"verify_aud": False})
