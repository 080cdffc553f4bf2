"""Which tenant a request is of: said by the caller, or known by the key.

Rules of the room:
- Where there are tenants every request about items, people, lists and outcomes is of one. Whose key is bound to one
  need not say it; to another tenant it opens nothing, whether that one exists or not.
- Where there are none nobody may say one, and a key that is bound to some opens no such request: what was meant to be
  apart would not be.
- Plain inference is of no tenant. Its ids are kept apart from those of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from millstream.errors import BadInput, Forbidden, NotFound
from millstream.flows.collect import of_tenant
from millstream.guard.tenants import SEPARATOR
from millstream.meter import Meter
from millstream.types import Outcome, Principal, TenantOutcome

NOBODYS = SEPARATOR
"""What ids begin with that are no tenant's."""
_SEND = 'send "tenant" with the request'


class Tenants:
    """`names`: those that are configured; none, where nobody is a tenant."""

    def __init__(self, names: Iterable[str], meter: Meter) -> None:
        help_ = "Lists and rankings that were asked for, by tenant."
        self._asked = {name: meter.counter("millstream_tenant_asks_total", help_, {"tenant": name}) for name in names}

    def __bool__(self) -> bool:
        return bool(self._asked)

    def of(self, principal: Principal, said: str) -> str:
        """The tenant of a request; "" where there are none. BadInput, NotFound; Forbidden: the key is another's."""
        bound = principal.tenants
        if not self._asked:
            if bound:
                raise Forbidden(
                    f"{principal.name} speaks for {', '.join(bound)} alone, and this installation has no tenants: its "
                    "millstream.toml has no [recommend.tenants.NAME]"
                )
            if said:
                raise BadInput(
                    f"tenant {said[:80]!r}: this installation has no tenants; leave it out, or add "
                    "[recommend.tenants.NAME] to its millstream.toml"
                )
            return ""
        if bound and said and said not in bound:
            raise Forbidden(f"{principal.name} may not speak for tenant {said[:80]!r}; it may for {', '.join(bound)}")
        if not (tenant := said or (bound[0] if len(bound) == 1 else "")):
            raise BadInput(f"tenant is missing: {_SEND}, one of {', '.join(bound or self._asked)}")
        if tenant not in self._asked:
            there = bound or tuple(self._asked)
            raise NotFound(f"tenant {tenant[:80]!r} is not configured; {_SEND}, one of {', '.join(there)}")
        return tenant

    def asked(self, tenant: str) -> None:
        """Count one request for a list or a ranking."""
        if tenant:
            self._asked[tenant].add()

    def outcomes(self, principal: Principal, told: Sequence[Outcome]) -> list[Outcome]:
        """Outcomes as the log has them. As `of`; BadInput for a watermark that a tenant tells, as it is about all."""
        said = [one.tenant if isinstance(one, TenantOutcome) else "" for one in told]
        if not self:
            self.of(principal, next(filter(None, said), ""))
            return list(told)
        ready = []
        for number, (one, tenant) in enumerate(zip(told, said, strict=True)):
            if one.kind != "watermark":
                ready.append(of_tenant(one, self.of(principal, tenant)))
            elif tenant or principal.tenants:
                raise BadInput(f"outcome {number}: a watermark speaks for the whole installation, which no tenant can")
            else:
                ready.append(one)
        return ready
