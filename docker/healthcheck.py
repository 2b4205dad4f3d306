"""Exit 0 if the server in this container can serve each of its models now, 1 if not."""

import http.client
import os
import sys

TIMEOUT_S = 4  # below the health check's own, so that it is this script that says what is wrong

connection = http.client.HTTPConnection(
    "localhost", int(os.environ.get("MMS_PORT") or 8080), timeout=TIMEOUT_S
)
try:
    connection.request("GET", "/health/ready")
    answer = connection.getresponse()
    sys.stdout.write(answer.read().decode())
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"port {connection.port}: no answer: {error}")
sys.exit(answer.status != http.HTTPStatus.OK)
