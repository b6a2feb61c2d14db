"""The shipped HAProxy configuration: `haproxy.cfg` and `iam.spoe.cfg`, the same for HAProxy 2.6 to 3.2.

`iamroles policy render` copies both and adds what depends on the policy. docs/haproxy.md explains them.
"""
