"""The server's metrics: counters, their exposition for Prometheus, and other destinations.

The public API by which 1.x handlers report metrics is `mms.metrics`.
"""
