"""A 1.x handler that answers as its body says, headers and status included."""

import json

from mms.service import PredictionException


def handle(data, context):
    if data is None:
        return None
    answers = []
    for i, row in enumerate(data):
        body = row.get("body") or {}
        order = body if isinstance(body, dict) else {}
        if not order and "order" in row:
            order = json.loads(row["order"][0] if isinstance(row["order"], list) else row["order"])
        for name, value in order.get("headers", []):
            context.set_response_header(i, name, value)
        if "count" in order:
            for n in range(order["count"]):
                context.set_response_header(i, f"X-{n}", "y" * order.get("each", 1))
        if "type" in order:
            context.set_response_content_type(i, order["type"])
        if "status" in order:
            context.set_http_response_status(order["status"], order.get("phrase", ""), i)
        if "raises" in order:
            raise PredictionException("chosen", order["raises"])
        answers.append(order.get("answer", "ok"))
    return answers
