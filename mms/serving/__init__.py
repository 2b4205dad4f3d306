"""The server process below HTTP: data and control plane, servables, queues and worker pools.

Never imports mxnet, numpy or user code. `lifecycle`, `queue.dispatcher` and `pool.machine` are
pure: events and times in, decisions out, so that races are tested without processes.
"""
