"""PUBLIC: prints the machine's metrics, and the memory of the processes named on its input.

``echo PID,PID | python -m mms.metrics.metric_collector``, under MMS 1.x's name.
"""

import logging
import sys

from mms.metrics import process_memory_metric, system_metrics

if __name__ == "__main__":
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
    system_metrics.collect_all(system_metrics)
    process_memory_metric.check_process_mem_usage(sys.stdin)
