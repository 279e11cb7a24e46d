from __future__ import annotations

import json

import pytest

from gateway.protocols import Answer, classify, openai


@pytest.mark.parametrize(
    ("method", "target", "answer", "model", "forwarded", "repeatable"),
    [
        ("POST", "/v2/models/m/infer", Answer.FORWARD, "m", "/v2/models/m/infer", True),
        ("POST", "/v2/models/m/versions/3/infer?x=1", Answer.FORWARD, "m", "/v2/models/m/versions/3/infer?x=1", True),
        ("POST", "/v2/models/m/generate_stream", Answer.FORWARD, "m", "/v2/models/m/generate_stream", False),
        ("GET", "/v2/models/m", Answer.FORWARD, "m", "/v2/models/m", True),
        ("GET", "/v2/models/m/config", Answer.FORWARD, "m", "/v2/models/m/config", True),
        ("POST", "/v2/models/a%2Db/infer", Answer.FORWARD, "a-b", "/v2/models/a%2Db/infer", True),
        ("GET", "/v2/models/m/ready", Answer.MODEL_READY, "m", "", False),
        ("GET", "/v2/models/m/versions/1/ready", Answer.MODEL_READY, "m", "", False),
        ("GET", "/v2", Answer.SERVER, "", "", False),
        ("GET", "/v2/", Answer.SERVER, "", "", False),
        ("GET", "/v2/health/live", Answer.LIVE, "", "", False),
        ("HEAD", "/v2/health/ready", Answer.READY, "", "", False),
        ("GET", "/v2/models", Answer.NOT_FOUND, "", "", False),
        ("GET", "/v2/models//ready", Answer.NOT_FOUND, "", "", False),
        ("POST", "/v1/embeddings", Answer.BODY, "", "/v1/embeddings", True),
        ("POST", "/v1/chat/completions?a", Answer.BODY, "", "/v1/chat/completions?a", False),
        ("GET", "/v1/models", Answer.LIST, "", "", False),
        ("GET", "/v1/models/m", Answer.DESCRIBE, "m", "", False),
        ("DELETE", "/v1/models/m", Answer.NOT_FOUND, "", "", False),
        ("POST", "/v1/", Answer.NOT_FOUND, "", "", False),
        ("PUT", "/models/m/a/b?c=%20", Answer.FORWARD, "m", "/a/b?c=%20", False),
        ("GET", "/models/m", Answer.FORWARD, "m", "/", True),
        ("POST", "/models/m/v2/models/x/infer", Answer.FORWARD, "m", "/v2/models/x/infer", True),
        ("POST", "/models/m/v1/embeddings", Answer.FORWARD, "m", "/v1/embeddings", True),
        ("POST", "/models/m/infer", Answer.FORWARD, "m", "/infer", False),
        ("GET", "/models/", Answer.NOT_FOUND, "", "", True),
        ("GET", "/", Answer.NOT_FOUND, "", "", False),
        ("GET", "/v2x", Answer.NOT_FOUND, "", "", False),
    ],
)
def test_routes(method, target, answer, model, forwarded, repeatable):
    route = classify(method, target)
    assert (route.answer, route.model, route.repeatable) == (answer, model, repeatable)
    if answer is not Answer.NOT_FOUND:
        assert route.target == forwarded


@pytest.mark.parametrize(
    ("target", "wakes"),
    [("/v2/models/m", True), ("/v2/models/m/config", True), ("/v2/models/m/stats", False), ("/models/m/x", True)],
)
def test_only_monitoring_leaves_a_model_asleep(target, wakes):
    assert classify("GET", target).wakes is wakes


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"model": "a"}', "a"),
        (b'{"model": "a", "x": {"model": "b"}}', "a"),
        (b'{"model": "a", "model": "b"}', "b"),
        ('{"model": "\\u0061", "x": "é"}'.encode(), "a"),
        (b'{"model": "a", "x": "\\ud800"}', "a"),
        (b'{"model": "a", "x": 1e999, "y": NaN}', "a"),
    ],
)
def test_the_model_is_found_as_a_json_reader_would(body, name):
    assert openai.model_of(body) == json.loads(body)["model"] == name


@pytest.mark.parametrize("body", [b"", b"[" * 100_000, b'{"model": null}', b'"model"', b'{"model": "a"', b"\x80"])
def test_bodies_without_a_model_say_so(body):
    with pytest.raises(openai.BadBody):
        openai.model_of(body)
