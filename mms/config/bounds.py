"""Upper bounds of settings.

Far above any real use, and below what does harm, such as more workers than the machine can run
processes, or a time that timers cannot represent.
"""

from mms.wire.frames import MAX_PAYLOAD_BYTES

MAX_WORKERS = 1024
MAX_THREADS = 1024
MAX_QUEUE = 1_000_000
MAX_REQUESTS = 10**12
MAX_BYTES = 1 << 50
MAX_ELEMENTS = 10**10
MAX_RATIO = 100_000
MAX_CONNECTIONS = 1_000_000
MAX_SECONDS = 365 * 24 * 3600.0
#: For settings in milliseconds: a quarter of an hour of waiting for a batch or a worker.
MAX_DELAY_MS = 900_000.0
#: Half of the largest frame between server and worker.
MAX_BODY_BYTES = MAX_PAYLOAD_BYTES // 2
