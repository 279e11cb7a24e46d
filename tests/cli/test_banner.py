from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tangram.cli import banner


def spec(protocol: str = "oip", example: object = None) -> dict[str, Any]:
    annotations = {} if example is None else {banner.EXAMPLE: example}
    return {
        "metadata": {"name": "digits", "annotations": annotations},
        "spec": {"runtime": {"protocol": protocol}},
    }


def words(given: dict[str, Any]) -> list[str]:
    line = banner.curl("http://127.0.0.1:8080", given)
    assert "\n" not in line
    return shlex.split(line)


def test_a_models_own_example_survives_the_shell() -> None:
    body = {"text": 'it\'s "so" $HOME `x`', "n": [1, 2]}
    given = words(spec(example=json.dumps({"path": "/v2/models/digits/infer", "body": body})))
    assert given[:3] == ["curl", "-sS", "http://127.0.0.1:8080/v2/models/digits/infer"]
    assert given[3:6] == ["-H", "Content-Type: application/json", "-d"]
    assert json.loads(given[6]) == body


def test_a_streaming_example_is_not_buffered() -> None:
    example = json.dumps({"path": "/v1/completions", "body": {"stream": True}})
    assert "-N" in words(spec("openai", example))


@pytest.mark.parametrize("example", [None, "{", "[]", "{}", '{"path": 3}', '{"path": "no-slash"}'])
def test_without_a_good_example_there_is_one_by_protocol(example: str | None) -> None:
    assert words(spec("oip", example))[2:] == ["http://127.0.0.1:8080/v2/models/digits"]
    assert words(spec("http", example))[2:] == ["http://127.0.0.1:8080/models/digits/"]
    openai = words(spec("openai", example))
    assert openai[2] == "http://127.0.0.1:8080/v1/completions"
    assert json.loads(openai[-1])["model"] == "digits"


def test_it_prints_addresses_and_a_line_for_each_model(
    running: str, facade: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    facade.gateway = "http://0.0.0.0:8080"
    assert banner.main(["--state", str(tmp_path / ".tangram"), "--wait", "10"]) == 0
    out = capsys.readouterr().out
    assert "Gateway   http://127.0.0.1:8080\n" in out
    assert f"Admin     {running} (token in .tangram/admin.token)" in out
    assert "# digits\ncurl -sS http://127.0.0.1:8080/v2/models/digits\n" in out
    assert "not ready" not in out


@pytest.mark.usefixtures("running")
def test_it_does_not_wait_for_ever(facade: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    facade.replica_views.clear()
    assert banner.main(["--state", str(tmp_path / ".tangram"), "--wait", "0"]) == 0
    assert "# digits   (not ready: it still starts)" in capsys.readouterr().out
    assert banner.main(["--state", str(tmp_path / "nothing"), "--wait", "0"]) == 0
    assert "does not answer yet" in capsys.readouterr().out


def test_a_model_at_zero_is_ready_and_an_adopting_controller_is_not(facade: Any) -> None:
    model = json.loads(facade.model("digits").model_dump_json(by_alias=True))
    status = json.loads(facade.status().model_dump_json(by_alias=True))
    assert banner.all_settled(status, [model])
    assert not banner.all_settled(status, [model | {"ready": 0}])
    assert banner.all_settled(status, [model | {"ready": 0, "minReplicas": 0}])
    assert banner.all_settled(status, [model | {"ready": 0, "fixedReplicas": 0}])
    assert not banner.all_settled(status | {"adopting": True}, [model])
    assert not banner.all_settled(status | {"workers": []}, [model])


def test_a_model_that_cannot_start_is_not_waited_for_and_says_why(facade: Any, tmp_path: Path) -> None:
    model = json.loads(facade.model("digits").model_dump_json(by_alias=True)) | {"ready": 0}
    status = json.loads(facade.status().model_dump_json(by_alias=True))
    failing = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": ""}
    model["conditions"] = [failing]
    assert banner.all_settled(status, [model])
    text = banner.banner(status, [model], {"digits": spec()}, state=tmp_path)
    assert "# digits   (not ready: ProgressDeadlineExceeded)" in text
    model["conditions"] = [failing | {"status": "True"}]
    assert not banner.all_settled(status, [model])


def test_where_keys_are_wanted_the_lines_send_one(facade: Any, tmp_path: Path) -> None:
    model = json.loads(facade.model("digits").model_dump_json(by_alias=True))
    status = json.loads(facade.status().model_dump_json(by_alias=True))
    assert "KEY" not in banner.banner(status, [model], {"digits": spec()}, state=tmp_path)
    text = banner.banner(status | {"requireKey": True}, [model], {"digits": spec()}, state=tmp_path)
    assert '/v2/models/digits -H "X-API-Key: $KEY"\n' in text
    assert "`tangram key create TENANT" in text
