"""Rows in Redis, Valkey or what speaks as they do: the bytes of the mapped file, where many machines read them.

Rules of the room:
- A key an entity: `PREFIX:LABEL:` and the 16 hexadecimal digits of its hash. `PREFIX:LABEL:vouched` is the time
  that was vouched for.
- Reading is one round trip for all keys and that time, one command up to ASK_MAX keys. Writing is pipelined, PUT_MAX
  rows a round trip.
- Nothing is tried twice here: a failure is said at once, and `Steady` is who knows what to do about it.
- One server, or one primary and its replicas behind one address. Keys are not laid out for Redis Cluster.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from millstream import errors
from millstream.store.away import check_keys, check_named, check_put, names, pack, pack_time, unpack, unpack_time
from millstream.store.rows import Found, Keys, Rows

logger = logging.getLogger(__name__)

ASK_MAX: Final = 10_000  # keys a command: others wait for the server meanwhile
PUT_MAX: Final = 1000
_HEALTH_S: Final = 30
_READ: Final = 1 << 18  # bytes at once: the answer to some hundred keys
T = TypeVar("T")


class RedisRows:
    """A RowStore in the Redis at `url` (redis://, rediss:// or unix://). `label` says what rows mean: a feature set's
    hash and the kind of entity; rows of another label are not seen. Many threads may use it.

    `ttl_s`: a row that was not put for so long goes; 0: never. `timeout_s` bounds the connection, and each wait for the
    server. `odd` counts values that were no row of `width` bytes: they are missing. Ranking reads through `Steady`.
    Errors: Busy, while there is no answer; Misconfigured, where the server refuses us; Missing, without its package.
    """

    def __init__(
        self,
        url: str,
        label: str,
        width: int,
        *,
        ttl_s: int = 0,
        prefix: str = "millstream",
        connections: int = 8,
        timeout_s: float = 1.0,
    ) -> None:
        self.width, self.odd = width, 0
        self._where = _shown(url, label)
        for part in (prefix, label):
            check_named(self._where, part, width)
        self._stem, self._ttl_s = f"{prefix}:{label}:", ttl_s
        self._vouch_key = f"{self._stem}vouched"
        self._vouched: int | None = None
        try:
            redis, _ = importlib.import_module("redis"), importlib.import_module("hiredis")
        except ImportError as error:
            raise errors.Missing.extra("redis", f"rows in {self._where}") from error
        self._failures = (redis.RedisError, OSError)
        self._refusals = (
            redis.AuthenticationError,
            redis.exceptions.AuthorizationError,
            redis.exceptions.NoPermissionError,
        )
        try:
            self._pool: Any = redis.BlockingConnectionPool.from_url(
                url,
                max_connections=connections,
                timeout=timeout_s,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                socket_read_size=_READ,
                health_check_interval=_HEALTH_S,
                retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
                protocol=2,  # all that is needed, and a connection asks for no more
            )
        except ValueError as error:
            raise errors.Misconfigured(f"{self._where}: {error}") from error
        self._redis: Any = redis.Redis(connection_pool=self._pool)

    def put(self, keys: Keys, rows: Rows, at: int) -> None:
        """See RowStore. Busy: some of the rows may have been put; put all of them again later."""
        keyed = names(self._stem, check_put(self._where, self.width, keys, rows, at))
        for first in range(0, len(keyed), PUT_MAX):
            part = slice(first, first + PUT_MAX)
            pipeline = self._redis.pipeline(transaction=False)
            for name, value in zip(keyed[part], pack(rows[part], at), strict=True):
                pipeline.set(name, value, ex=self._ttl_s or None)
            self._said(pipeline.execute, "its rows were not all written; they have to be written again")

    def get(self, keys: Keys) -> Found:
        """See RowStore. One round trip, whatever the number of keys."""
        asked = [*names(self._stem, check_keys(self._where, keys)), self._vouch_key]
        values = self._said(lambda: self._mget(asked), "its rows were not read")
        self._vouched = unpack_time(values.pop())
        found, odd = unpack(values, self.width)
        if odd:
            if not self.odd:
                logger.warning("%s: %d values are no rows of %d bytes; they are missing", self._where, odd, self.width)
            self.odd += odd
        return found

    def vouch(self, at: int) -> None:
        """See RowStore."""
        value = pack_time(self._where, at)
        self._said(lambda: self._redis.set(self._vouch_key, value), "what was vouched for was not written")
        self._vouched = at

    def vouched(self) -> int:
        """See RowStore: as the last `get` read it, or as was vouched here since. Before that it is asked for."""
        if self._vouched is None:
            value = self._said(lambda: self._redis.get(self._vouch_key), "what was vouched for was not read")
            self._vouched = unpack_time(value)
        return self._vouched

    def forget(self, keys: Keys) -> int:
        """Remove the rows of `keys` (people who are to be forgotten); how many there were. What the server keeps on
        disks of its own, and a `Steady` elsewhere for its `stale_s_max`, is not reached."""
        left, gone = names(self._stem, check_keys(self._where, keys)), 0
        for first in range(0, len(left), PUT_MAX):
            part = left[first : first + PUT_MAX]
            gone += self._said(partial(self._redis.delete, *part), "not all rows were removed")
        return gone

    def close(self) -> None:
        """Close the connections."""
        self._pool.disconnect()

    def _mget(self, asked: list[str]) -> list[bytes | None]:
        if len(asked) <= ASK_MAX:
            return list(self._redis.mget(asked))
        pipeline = self._redis.pipeline(transaction=False)
        for first in range(0, len(asked), ASK_MAX):
            pipeline.mget(asked[first : first + ASK_MAX])
        return [value for part in pipeline.execute() for value in part]

    def _said(self, call: Callable[[], T], what: str) -> T:
        """What `call` gives; what the client raises as our own errors."""
        try:
            return call()
        except self._refusals as error:
            raise errors.Misconfigured(f"{self._where} refuses us ({error}): {what}") from error
        except self._failures as error:
            raise errors.Busy(f"{self._where} does not answer ({type(error).__name__}: {error}): {what}") from error


def _shown(url: str, label: str) -> str:
    """An address for messages: nothing of it is a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path} {label[:80]}"
