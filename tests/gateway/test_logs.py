from __future__ import annotations

import json
import logging
import sys

from gateway.logs import JSONFormatter, TextFormatter


def record(**extra) -> logging.LogRecord:
    made = logging.LogRecord("gateway.x", logging.WARNING, "f", 1, "no answer: %s", ("reset",), None)
    made.__dict__.update(extra)
    return made


def test_a_line_about_a_request_names_it():
    line = TextFormatter().format(record(request_id="abc", model="m", replica=""))
    assert line.endswith("Z warning gateway.x: no answer: reset [request_id=abc model=m]")


def test_json_lines_are_objects_with_the_same_fields():
    try:
        raise ValueError("x")
    except ValueError:
        made = record(request_id="abc")
        made.exc_info = sys.exc_info()
    document = json.loads(JSONFormatter().format(made))
    assert (document["level"], document["message"], document["request_id"]) == ("warning", "no answer: reset", "abc")
    assert "ValueError: x" in document["exception"]
