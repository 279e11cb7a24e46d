"""Asks the fleet's Prometheus what models' metrics of type `prometheus` say, and leaves the answers in the state.

Every period each query is asked once, however many models share it, a few at a time, each within the timeout. An
answer is good when it is one finite number: a scalar, or a vector of one series. Everything else is an error that is
kept beside the last good answer; measure.py says when that is too old, and the autoscaler then removes nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
from pathlib import Path
from typing import Any, Final

import aiohttp

from tangram.control.state import Answer, ControllerState
from tangram.spec import PrometheusSpec

log = logging.getLogger("tangram.prometheus")

#: Requests under way at a time.
AT_ONCE: Final = 4
MAX_BYTES: Final = 1024 * 1024
#: While there is nothing to ask, it is looked for something this often.
IDLE_S: Final = 1.0
_SHOWN: Final = 200


class NoAnswer(Exception):
    """Prometheus gave no number; the text says why."""


class Prometheus:
    """Runs until cancelled; follows changes of the fleet and the models."""

    def __init__(self, state: ControllerState) -> None:
        self._state = state
        self._failing: set[str] = set()

    async def run(self) -> None:
        """Ask, period after period."""
        async with aiohttp.ClientSession(trust_env=False) as session:
            while True:
                terms = self._state.fleet.spec.prometheus if self._state.fleet is not None else None
                queries = self._queries()
                for query in self._state.answers.keys() - queries:
                    del self._state.answers[query]
                self._failing &= queries
                if terms is None or not queries:
                    await asyncio.sleep(IDLE_S)
                    continue
                began = asyncio.get_running_loop().time()
                await self.ask(session, terms, queries)
                spent = asyncio.get_running_loop().time() - began
                await self._wait(max(0.0, terms.period_seconds - spent), terms, queries)

    async def _wait(self, seconds: float, terms: PrometheusSpec, queries: set[str]) -> None:
        """Until the next period, or until there is something else to ask."""
        until = asyncio.get_running_loop().time() + seconds
        while (left := until - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(min(left, IDLE_S))
            fleet = self._state.fleet
            if not self._queries() <= queries or fleet is None or fleet.spec.prometheus != terms:
                return

    def _queries(self) -> set[str]:
        return {
            m.query for e in self._state.models.values() for m in e.model.spec.scaling.metrics if m.query is not None
        }

    async def ask(self, session: aiohttp.ClientSession, terms: PrometheusSpec, queries: set[str]) -> None:
        """Ask each query once and note what came of it."""
        gate = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(self._ask(session, terms, query, gate) for query in queries))

    async def _ask(
        self, session: aiohttp.ClientSession, terms: PrometheusSpec, query: str, gate: asyncio.Semaphore
    ) -> None:
        try:
            async with gate, asyncio.timeout(terms.timeout_seconds):
                value = await _number(session, terms, query)
        except NoAnswer as error:
            self._failed(query, str(error))
        except TimeoutError:
            self._failed(query, f"nothing came within {terms.timeout_seconds:g} s")
        except aiohttp.ClientConnectorError as error:
            code = error.os_error.errno or 0
            why = os.strerror(code) if code > 0 else str(error.os_error.strerror)
            self._failed(query, f"cannot connect to {error.host}:{error.port}: {why}")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self._failed(query, str(error) or type(error).__name__)
        else:
            if query in self._failing:
                self._failing.discard(query)
                log.info("%s is answered again", query)
            self._state.answers[query] = Answer(value, asyncio.get_running_loop().time())

    def _failed(self, query: str, why: str) -> None:
        if query not in self._failing:
            self._failing.add(query)
            log.warning("%s is not answered: %s", query, why)
        before = self._state.answers.get(query, Answer(None, 0.0))
        self._state.answers[query] = Answer(before.value, before.at, why)


async def _number(session: aiohttp.ClientSession, terms: PrometheusSpec, query: str) -> float:
    """The one number that the query gives. Raises NoAnswer, and what aiohttp raises."""
    headers = {}
    if terms.bearer_token_file is not None:
        try:
            headers["Authorization"] = f"Bearer {Path(terms.bearer_token_file).read_text(encoding='ascii').strip()}"
        except (OSError, UnicodeDecodeError) as error:
            raise NoAnswer(f"bearerTokenFile {terms.bearer_token_file} cannot be read: {error}") from error
    url = f"{terms.url.rstrip('/')}/api/v1/query"
    async with session.post(url, data={"query": query}, headers=headers, allow_redirects=False) as response:
        body = bytearray()
        async for chunk in response.content.iter_chunked(65_536):
            body += chunk
            if len(body) > MAX_BYTES:
                raise NoAnswer(f"its answer is longer than {MAX_BYTES} bytes; aggregate the query to one number")
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise NoAnswer(f"status {response.status}, and no JSON; is {terms.url} a Prometheus?") from None
    if not isinstance(answer, dict) or answer.get("status") != "success":
        told = answer.get("error") if isinstance(answer, dict) else None
        raise NoAnswer(f"status {response.status}: {str(told or 'no success')[:_SHOWN]}")
    return _single(answer.get("data"))


def _single(data: Any) -> float:
    kind = data.get("resultType") if isinstance(data, dict) else None
    result = data.get("result") if isinstance(data, dict) else None
    if kind == "vector" and isinstance(result, list):
        if not result:
            raise NoAnswer("the query finds no series")
        if len(result) > 1:
            raise NoAnswer(f"the query finds {len(result)} series; aggregate them, for example with sum()")
        result = result[0].get("value") if isinstance(result[0], dict) else None
    elif kind != "scalar":
        raise NoAnswer(f"the query gives a {kind or 'result of no type'}, not a number")
    try:
        value = float(result[1]) if isinstance(result, list) else math.nan
    except (TypeError, ValueError, LookupError, OverflowError):
        raise NoAnswer("its answer holds no number") from None
    if not math.isfinite(value):
        raise NoAnswer(f"the query gives {value}")
    return value
