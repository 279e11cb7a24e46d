from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
        ("GET", "/v1/realtime?model=m&x=1", Answer.FORWARD, "m", "/v1/realtime?model=m&x=1", False),
        ("GET", "/v1/realtime", Answer.NOT_FOUND, "", "", False),
        ("POST", "/v2/models/m/generate", Answer.FORWARD, "m", "/v2/models/m/generate", False),
        ("GET", "/v2/models/m/stats", Answer.FORWARD, "m", "/v2/models/m/stats", True),
        ("GET", "/v2/models/m/versions/2", Answer.FORWARD, "m", "/v2/models/m/versions/2", True),
        ("POST", "/v2/repository/index", Answer.INDEX, "", "", False),
        ("GET", "/v2/repository/index", Answer.INDEX, "", "", False),
        ("POST", "/v2/repository/models/m/load", Answer.CONTROL, "", "", False),
        ("POST", "/v2/repository/models/m/unload", Answer.CONTROL, "", "", False),
        ("GET", "/v2/logging", Answer.CONTROL, "", "", False),
        ("POST", "/v2/trace/setting", Answer.CONTROL, "", "", False),
        ("POST", "/v2/models/m/trace/setting", Answer.CONTROL, "", "", False),
        ("POST", "/v2/models/m/versions/1/tr%61ce/setting", Answer.CONTROL, "", "", False),
        ("POST", "/v2/systemsharedmemory/region/x/register", Answer.CONTROL, "", "", False),
        ("POST", "/models/m/v2/repository/models/m/unload", Answer.CONTROL, "m", "", False),
        ("POST", "/models/m//v2/%6cogging", Answer.CONTROL, "m", "", False),
        ("GET", "/", Answer.NOT_FOUND, "", "", False),
        ("GET", "/v2x", Answer.NOT_FOUND, "", "", False),
    ],
)
def test_routes(method, target, answer, model, forwarded, repeatable):
    route = classify(method, target)
    assert (route.answer, route.model, route.repeatable) == (answer, model, repeatable)
    if answer not in (Answer.NOT_FOUND, Answer.CONTROL):
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


def reference(body: bytes) -> str | None:
    """The model by Python's own parser; None where the body names none."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    name = document.get("model") if isinstance(document, dict) else None
    return name if isinstance(name, str) and name else None


KEYS = st.sampled_from(["model", "mode", "Model", "messages", "", "models", "\u00e9"])
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(["m", '"model": "x"', "\\model"])
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=8)


@st.composite
def bodies(draw):
    """JSON objects with keys given twice, characters escaped and blanks between; some with bytes changed."""
    dump = draw(st.sampled_from([json.dumps, lambda value: json.dumps(value, ensure_ascii=False)]))
    blank = draw(st.sampled_from(["", " ", "\n\t"]))
    pairs = []
    for key, value in draw(st.lists(st.tuples(KEYS, VALUES), max_size=5)):
        name = dump(key)
        if draw(st.booleans()):
            name = name.replace("d", "\\u0064")
        pairs.append(f"{blank}{name}{blank}:{blank}{dump(value)}")
    body = f"{blank}{{{','.join(pairs)}{blank}}}{blank}".encode("utf-8", "surrogatepass")
    if draw(st.booleans()):
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(st.binary(max_size=2)) + body[at + draw(st.integers(0, 2)) :]
    return body


@settings(max_examples=400)
@given(bodies())
def test_the_model_is_found_exactly_where_a_json_reader_finds_it(body):
    try:
        found = openai.model_of(body)
    except openai.BadBody:
        found = None
    assert found == reference(body)
