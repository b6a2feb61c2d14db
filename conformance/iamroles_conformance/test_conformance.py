"""The suite: `pytest conformance/` in a checkout, `pytest --pyargs iamroles_conformance` elsewhere.

The tests are data: scenario files, and checks declared in `iamroles_scenarios.checks`. The plugin
(`iamroles_conformance.plugin`) makes one item of each check.
"""
