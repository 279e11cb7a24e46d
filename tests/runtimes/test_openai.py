from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram.node.runtimes.embedded import Model
from tangram.node.runtimes.embedded.api import BadRequestError
from tangram.node.runtimes.embedded.openai import StopCutter, parse_generation

LETTERS = st.text("ab", max_size=4)


@given(st.lists(LETTERS, max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_text_is_cut_before_the_first_stop_string_however_it_is_pieced(pieces: list[str], stops: list[str]) -> None:
    cutter = StopCutter(stops)
    sent = ""
    come = ""
    for piece in pieces:
        sent += cutter.push(piece)
        come += piece
        assert cutter.stopped == any(stop in come for stop in stops)
        if cutter.stopped:
            break
        longest = max(map(len, stops), default=1)
        assert len(come) - len(sent) < longest, "no more is held back than may begin a stop string"
    sent += cutter.flush()
    ends = [come.find(stop) for stop in stops if stop in come]
    assert sent == come[: min(ends, default=len(come))]


def test_defaults_are_those_of_openai() -> None:
    asked = parse_generation({"prompt": "p"}, Model(), chat=False)
    assert (asked.prompts, asked.max_tokens, asked.temperature, asked.seed) == (("p",), 16, 1.0, None)
    assert not asked.stream
    assert asked.stop == ()


def test_each_prompt_makes_n_choices() -> None:
    assert parse_generation({"prompt": ["a", "b"], "n": 2}, Model(), chat=False).prompts == ("a", "a", "b", "b")


def test_chat_messages_become_a_prompt() -> None:
    body = {
        "messages": [
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]},
        ],
        "max_completion_tokens": 5,
        "stop": "\n",
    }
    asked = parse_generation(body, Model(), chat=True)
    assert asked.prompts == ("system: be kind\nuser: hello\nassistant:",)
    assert (asked.max_tokens, asked.stop) == (5, ("\n",))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": 3}, "prompt: must be a string or a list of strings"),
        ({"prompt": [1, 2]}, "token numbers are not supported"),
        ({"n": 0}, "n: 0 is not a whole number of 1 or more"),
        ({"n": 17}, "n: 17 choices are asked for; at most 16"),
        ({"max_tokens": 1.5}, "max_tokens: 1.5 is not a whole number"),
        ({"max_tokens": True}, "max_tokens: True is not a whole number"),
        ({"temperature": 3}, "temperature: 3 is not a number from 0 to 2"),
        ({"seed": "x"}, "seed: 'x' is not a whole number"),
        ({"stream": "yes"}, "stream: 'yes' is not true or false"),
        ({"stream_options": 1}, "stream_options: 1 is not an object"),
        ({"stop": [1]}, "stop: must be a string"),
        ({"logprobs": 2}, "logprobs: 2 is not supported by this server; leave it out"),
        ({"tools": [{}]}, "tools: .* is not supported"),
    ],
)
def test_bad_fields_are_named(body: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        parse_generation({"prompt": "p"} | body, Model(), chat=False)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "messages: must be a list"),
        ([], "at least one message"),
        ([{"content": "x"}], r"messages\[0\]: must be an object with a role"),
        ([{"role": "user", "content": None}], r"messages\[0\].content: must be text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "other content is not supported"),
    ],
)
def test_bad_messages_are_named(messages: Any, message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        parse_generation({"messages": messages}, Model(), chat=True)
