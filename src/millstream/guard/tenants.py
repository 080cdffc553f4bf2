"""Names of several tenants in one installation: brands, shops, customers, none of whom knows of the others.

Rules of the room:
- In the log and in every process a name of a tenant begins with the tenant: item `i1` of acme is `acme/i1`. Callers
  never see that: it is put on where something comes in, whatever it looks like, and taken off where it goes out.
- The name of a tenant has no `/`, so `acme/` begins names of acme alone, also where acme calls an item `zeta/i1`.
- An empty name stays empty: it names nobody, and whoever checks it sees that.
- Where nobody is a tenant the tenant is "", and names are as they were given.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Final

from millstream.guard.pii import pseudonym

SEPARATOR: Final = "/"
NAME: Final = re.compile("[a-z][a-z0-9_-]{0,62}")
"""What a tenant may be called: a folder's name, whatever the file system."""


def proper(tenant: str) -> bool:
    """Whether a tenant may have this name; one that looks like somebody's number may not."""
    return NAME.fullmatch(tenant) is not None and pseudonym(tenant + SEPARATOR) == tenant + SEPARATOR


def start(tenant: str) -> str:
    """How all names of a tenant begin; "" where there is none."""
    return tenant + SEPARATOR if tenant else ""


def inside(tenant: str, name: str) -> str:
    """A tenant's name of a request, an item or an event as the log has it."""
    return start(tenant) + name if name else ""


def person(tenant: str, name: str) -> str:
    """A tenant's name of somebody as the log has it. `name`: as `pii.pseudonym` or `pii.visitor` made it. The log's
    gate leaves the whole as it is."""
    whole = inside(tenant, name)
    if not tenant or not name or pseudonym(whole) == whole:
        return whole
    told_apart = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    return f"{start(tenant)}[ID#{told_apart}]"  # with the tenant before it, it looks like a number of somebody's


def outside(tenant: str, name: str) -> str:
    """A name as the tenant calls it: what `inside` was given."""
    return name.removeprefix(start(tenant))


def tenant_of(name: str) -> str:
    """Whose a name of the log is, in an installation of tenants."""
    return name.partition(SEPARATOR)[0]
