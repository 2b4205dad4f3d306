"""The load generator of benchmarks and tests: HTTP requests over keep-alive connections.

`wire` knows HTTP, `connection` sends bytes and passes answers on, `channel` awaits one answer after
another, `patterns` decide who asks when (a closed loop, or an open one with the arrivals of
`schedule`), and `measured` counts. ``python -m tests.kit.load`` puts a measured load on a URL from
a process of its own; the chaos tests drive the same patterns with clients that tell each answer
from every other.
"""
