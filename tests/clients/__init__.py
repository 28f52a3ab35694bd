"""Clients that we did not write, each in an environment of its own, judge the rehearsal.

`scripts/CLIENT/*.py` do what a user of the client types. Each step is in a block `works(...)` or `not_rehearsed(...)`
(`recording.py`). `launched.py` of each client is about jobs and an endpoint that our launcher made. The tests run a
script in the environment of its client against a rehearsal, and compare the steps that came to their end with the
table in docs/cloud.md (`table.py`).
"""
