"""What is to be done with requests of one head: a `Plan`, made once and used for all of them.

Who asks, what the head means and how it goes on to an endpoint is worked out once for each distinct head and each
version of the table. The plan is found by the exact bytes of the head, or by those around the values that differ
from request to request (`plain.cut`), which then fill the holes in what the plan has ready. A request that gets no
plan is for the full path, which knows what to answer.
"""

from __future__ import annotations

from typing import Final

from gateway import headers, plain
from gateway.dispatch import Dispatcher
from gateway.leases import Served
from gateway.protocols import Answer, openai
from gateway.refusal import Refusal
from gateway.tenants import CREDENTIALS, Tenant
from gateway.wire import ModelEntry

#: What is known of the exact bytes of a head: the plan, the number of its length, the size of the whole request, and
#: the values that were cut out of it.
Known = tuple["Plan", bytes, int, list[bytes]]
_LENGTH: Final = b"content-length"
_SANE_ID: Final = headers.REQUEST_ID
_ID: Final = b"x-request-id"


class Plan:
    """What is done with requests of one head, for one model and one version of the table."""

    __slots__ = (
        "bodiless",
        "by_name",
        "edition",
        "head",
        "holes",
        "id_at",
        "in_body",
        "length_at",
        "name",
        "parts",
        "prefix",
        "repeatable",
        "served",
        "tenant",
        "timeout_s",
        "varying",
    )

    served: Served

    def __init__(self, head: plain.RequestHead, varying: list[bytes]) -> None:
        """`varying` are the names of the fields whose values differ, in lower case."""
        self.head = head
        self.varying = varying
        self.length_at = varying.index(_LENGTH) if _LENGTH in varying else -1
        """Which of the values is the length; -1 where none is. Likewise:"""
        self.id_at = varying.index(_ID) if _ID in varying else -1
        self.bodiless = head.method == b"HEAD"
        self.in_body = head.route.answer is Answer.BODY
        self.edition = -1
        """Of the table that it was made for."""
        self.name = ""
        """Of the model; empty while there is no plan for such requests."""
        self.tenant: Tenant | None = None
        self.prefix = b""
        """The request's head as it goes to an endpoint, up to its length, from the last hole on."""
        self.parts: list[bytes] = []
        """What comes before each hole."""
        self.holes: list[int] = []
        """Which of the values fills it."""
        self.repeatable = False
        self.timeout_s = 0.0
        self.by_name: dict[str, Plan] = {}
        """Where the body names the model: the plan for each."""

    def lead(self, values: list[bytes]) -> bytes:
        """The head of a request as it goes to an endpoint, up to the number of its length."""
        if not self.holes:
            return self.prefix
        out: list[bytes] = []
        holes = self.holes
        for number, part in enumerate(self.parts):
            out.append(part)
            out.append(values[holes[number]])
        out.append(self.prefix)
        return b"".join(out)

    def id_of(self, values: list[bytes]) -> bytes:
        """The client's own id of a request; empty where it gave none that is sane."""
        if self.id_at < 0:
            return b""
        id = values[self.id_at]
        return id if _SANE_ID.fullmatch(id) else b""


def needs_more(entry: ModelEntry) -> bool:
    """Whether requests for a model need more than to be passed on: the full path sees to it."""
    return bool(entry.split or entry.mirror or entry.sticky_header or entry.hedge is not None)


class Planner:
    """Makes plans, and keeps them."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.exact: dict[bytes, Known] = {}
        """By all bytes of a head but its empty line."""
        self._plans: dict[bytes, Plan | None] = {}
        self._dispatcher = dispatcher

    def look_up(self, data: bytes, end: int) -> Known | None:
        """What is known of a head that ends at `end`; None where it is not plain."""
        head = data[:end]
        if end + 2 > plain.MAX_HEAD:
            return None
        key, pieces, values = plain.cut(head)
        plan = self._plans.get(key)
        if plan is None and (key in self._plans or (plan := self._learn(key, pieces, values, head)) is None):
            return None
        if len(values) != len(plan.varying):
            return None
        number = values[plan.length_at] if plan.length_at >= 0 else b""
        if number and not plain.NUMBER.fullmatch(number):
            return None
        known = plan, number, end + 4 + int(number or b"0"), values
        if len(values) == (plan.length_at >= 0):
            # One with an id of its own will not come again.
            plain.keep(self.exact, head, known)
        return known

    def _learn(self, key: bytes, pieces: list[bytes], values: list[bytes], head: bytes) -> Plan | None:
        read = plain.read_request(head + b"\r\n")
        varying = [lead[2:-2].lower() for lead in pieces[1::2]]
        plan = None if read is None else Plan(read, varying)
        # One with an empty value, or with a length of another form, has the key of those whose values are plain.
        odd = b": \r\n" in head + b"\r\n" or any(
            name == _LENGTH and not plain.NUMBER.fullmatch(value) for name, value in zip(varying, values, strict=True)
        )
        if plan is not None or not odd:
            plain.keep(self._plans, key, plan)
        return plan

    def resolve(self, plan: Plan) -> None:
        """Make a plan for the table in use; without a `name` where the full path is to see to such requests."""
        plan.edition = self._dispatcher.table.edition
        plan.name = ""
        plan.by_name.clear()
        head = plan.head
        if not head.forwardable:
            return
        plan.tenant = None
        if self._dispatcher.tenants.asking:
            who = self._dispatcher.tenants.identify(head.credential)
            if isinstance(who, Refusal):
                return
            plan.tenant = who
        self._upward(plan)
        if plan.in_body:
            plan.name = "*"
        else:
            self._for_model(plan, head.route.model)

    def named(self, plan: Plan, body: bytes) -> Plan | None:
        """The plan for the model that a body names."""
        try:
            name = openai.model_of(body)
        except openai.BadBody:
            return None
        found = plan.by_name.get(name)
        if found is None:
            found = Plan(plan.head, plan.varying)
            found.edition, found.tenant = plan.edition, plan.tenant
            found.parts, found.holes, found.prefix = plan.parts, plan.holes, plan.prefix
            self._for_model(found, name)
            if not found.name:
                return None
            plan.by_name[name] = found
        return found

    def _for_model(self, plan: Plan, name: str) -> None:
        served = self._dispatcher.find(name)
        if served is None:
            return
        entry = served.route.entry
        if needs_more(entry) or (entry.rename_aliases and name != entry.name):
            return
        route = plan.head.route
        plan.served = served
        plan.name = served.meter.name
        plan.timeout_s = entry.timeout_s
        plan.repeatable = entry.retry_attempts > 0 and (route.repeatable or entry.retry_all_methods)

    @staticmethod
    def _upward(plan: Plan) -> None:
        head = plan.head
        fields = head.fields
        if plan.tenant is not None:
            fields = [field for field in fields if field[0].lower() not in CREDENTIALS]
        sized = head.length is not None
        # What comes last differs from request to request: the length, and three fields about the client.
        out = headers.upward(
            fields,
            host=head.host,
            client="",
            scheme="",
            request_id="",
            length=0 if sized else None,
            chunked=False,
        )[: -4 if sized else -3]
        plan.parts, plan.holes = [], []
        after: dict[bytes, int] = {}
        text = b"%b %b HTTP/1.1" % (head.method, head.route.target.encode("ascii"))
        for name, value in out:
            text += b"\r\n" + name + b": "
            lower = name.lower()
            if lower in plan.varying:
                plan.parts.append(text)
                # Some may come in several lines.
                hole = plan.varying.index(lower, after.get(lower, 0))
                plan.holes.append(hole)
                after[lower] = hole + 1
                text = b""
            else:
                text += value
        plan.prefix = text + b"\r\nContent-Length: " if sized else text
