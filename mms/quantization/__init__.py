"""int8: rewrite a network, calibrate it, measure what it costs, and run it. May import mxnet.

`rewrite` is pure; `calibrate` runs in a process of its own, started by ``mxnet-model-export``;
`net` is what workers run.
"""
