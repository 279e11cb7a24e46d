"""What is to be done with requests of one head: a `Plan`, made once and used for all of them.

Who asks, what the head means and how it goes on to an endpoint is worked out once for each distinct head and each
version of the table. The plan is found by the exact bytes of the head, or by those around the number of its length
where only that differs. A request that gets no plan is for the full path, which knows what to answer.
"""

from __future__ import annotations

from gateway import headers, plain
from gateway.dispatch import Dispatcher
from gateway.leases import Served
from gateway.protocols import Answer, openai
from gateway.refusal import Refusal
from gateway.tenants import CREDENTIALS, Tenant
from gateway.wire import ModelEntry

#: What is known of the exact bytes of a head: the plan, the number of its length, and the size of the whole request.
Known = tuple["Plan", bytes, int]


class Plan:
    """What is done with requests of one head, for one model and one version of the table."""

    __slots__ = (
        "bodiless",
        "by_name",
        "edition",
        "head",
        "in_body",
        "name",
        "prefix",
        "repeatable",
        "request_id",
        "served",
        "tenant",
        "timeout_s",
    )

    served: Served

    def __init__(self, head: plain.RequestHead) -> None:
        self.head = head
        self.request_id = head.request_id
        self.bodiless = head.method == b"HEAD"
        self.in_body = head.route.answer is Answer.BODY
        self.edition = -1
        """Of the table that it was made for."""
        self.name = ""
        """Of the model; empty while there is no plan for such requests."""
        self.tenant: Tenant | None = None
        self.prefix = b""
        """The request's head as it goes to an endpoint, up to where each request has its own."""
        self.repeatable = False
        self.timeout_s = 0.0
        self.by_name: dict[str, Plan] = {}
        """Where the body names the model: the plan for each."""


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
        key, number = plain.split(data, end)
        plan = self._plans.get(key)
        if plan is None and (key in self._plans or (plan := self._learn(key, data[: end + 2])) is None):
            return None
        if not number and plan.head.length:
            number = plan.head.length
        known = plan, number, end + 4 + int(number or 0)
        plain.keep(self.exact, data[:end], known)
        return known

    def _learn(self, key: bytes, head: bytes) -> Plan | None:
        read = plain.read_request(head)
        plan = None if read is None else Plan(read)
        if len(head) <= plain.MAX_HEAD:
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
        plan.prefix = self._upward(head, plan.tenant)
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
            found = Plan(plan.head)
            found.edition, found.tenant, found.prefix = plan.edition, plan.tenant, plan.prefix
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
    def _upward(head: plain.RequestHead, tenant: Tenant | None) -> bytes:
        fields = head.fields
        if tenant is not None:
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
        lines = [b"%b %b HTTP/1.1" % (head.method, head.route.target.encode("ascii"))]
        lines += [name + b": " + value for name, value in out]
        if sized:
            lines.append(b"Content-Length: ")
        return b"\r\n".join(lines)
