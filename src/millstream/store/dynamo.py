"""Rows in DynamoDB: the same packed bytes as in the mapped file, in a table that many machines read.

Rules of the room:
- An item an entity: `key` (text, the table's partition key) is `LABEL:` and the 16 hexadecimal digits of the hash,
  `row` (binary) the value, `expires` (number, unix seconds; the table's time to live attribute) when it goes, where it
  does. `LABEL:vouched` is the time that was vouched for.
- 100 items a request are read, 25 written, requests side by side on at most `connections` threads. What the service
  hands back unprocessed is asked for again, TRIES times at most with growing pauses; a failure is said at once.
- Items that have expired are missing, whether the service has removed them or not: it takes days.
- Reads are eventually consistent: a row may be the one before the last put for a second or so.
- Region, credentials and endpoint are what boto3 reads from the environment: there are no settings here.
"""

from __future__ import annotations

import importlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import numpy as np

from millstream import errors
from millstream.clock import Clock, SystemClock
from millstream.store.away import check_keys, check_named, check_put, names, pack, pack_time, unpack, unpack_time
from millstream.store.rows import Found, Keys, Rows

logger = logging.getLogger(__name__)

READ_MAX: Final = 100  # both are the service's own limits
WRITE_MAX: Final = 25
TRIES: Final = 5
_PAUSE_S = 0.02
_REFUSALS: Final = ("ResourceNotFound", "AccessDenied", "UnrecognizedClient", "InvalidSignature", "Validation")
T = TypeVar("T")
Item = dict[str, Any]


class DynamoRows:
    """A RowStore in the DynamoDB table `table`, which exists. `label` says what rows mean: a feature set's hash and the
    kind of entity; rows of another label are not seen. Many threads may use it.

    `ttl_s`: a row that was not put for so long is missing; 0: never. `timeout_s` bounds a connection and each wait for
    the service. `odd` counts values that were no row of `width` bytes: they are missing. Ranking reads through
    `Steady`. Errors: Busy, while there is no answer; Misconfigured, where the service refuses us; Missing, without its
    package.
    """

    def __init__(
        self,
        table: str,
        label: str,
        width: int,
        *,
        ttl_s: int = 0,
        connections: int = 8,
        timeout_s: float = 1.0,
        clock: Clock | None = None,
    ) -> None:
        self.width, self.odd = width, 0
        self._where = f"DynamoDB table {table} {label[:80]}"
        check_named(self._where, label, width)
        self._table, self._stem, self._ttl_s = table, f"{label}:", ttl_s
        self._vouch_key = f"{label}:vouched"
        self._vouched: int | None = None
        self._clock = clock or SystemClock()
        try:
            boto3, config = importlib.import_module("boto3"), importlib.import_module("botocore.config")
            failures = importlib.import_module("botocore.exceptions")
        except ImportError as error:
            raise errors.Missing.extra("dynamodb", f"rows in {self._where}") from error
        self._refused, self._failures = failures.ClientError, (failures.BotoCoreError, OSError)
        try:
            self._dynamo: Any = boto3.client(
                "dynamodb",
                config=config.Config(
                    connect_timeout=timeout_s,
                    read_timeout=timeout_s,
                    max_pool_connections=connections,
                    retries={"total_max_attempts": 1},
                ),
            )
        except self._failures as error:
            raise errors.Misconfigured(f"{self._where}: {error}") from error
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="dynamo")

    def put(self, keys: Keys, rows: Rows, at: int) -> None:
        """See RowStore. Busy: some of the rows may have been put; put all of them again later."""
        keys = check_put(self._where, self.width, keys, rows, at)
        last = dict(zip(names(self._stem, keys), pack(rows, at), strict=True))  # the service takes a key once a request
        self._write([_put(self._item(name, value)) for name, value in last.items()], "its rows were not all written")

    def get(self, keys: Keys) -> Found:
        """See RowStore. As many round trips, side by side, as there are hundreds of keys."""
        wanted = names(self._stem, check_keys(self._where, keys))
        asked = list(dict.fromkeys((self._vouch_key, *wanted)))
        values: dict[str, bytes] = {}
        for part in self._side_by_side(self._read, asked, READ_MAX, "its rows were not read"):
            values |= part
        self._vouched = unpack_time(values.get(self._vouch_key))
        found, odd = unpack([values.get(name) for name in wanted], self.width)
        if odd:
            if not self.odd:
                logger.warning("%s: %d values are no rows of %d bytes; they are missing", self._where, odd, self.width)
            self.odd += odd
        return found

    def vouch(self, at: int) -> None:
        """See RowStore."""
        item = {"key": {"S": self._vouch_key}, "row": {"B": pack_time(self._where, at)}}
        self._write([_put(item)], "what was vouched for was not written")
        self._vouched = at

    def vouched(self) -> int:
        """See RowStore: as the last `get` read it, or as was vouched here since. Before that it is asked for."""
        if self._vouched is None:
            self.get(np.zeros(0, np.uint64))
        return self._vouched or 0

    def forget(self, keys: Keys) -> int:
        """Remove the rows of `keys` (people who are to be forgotten); how many there were. Backups of the table, and a
        `Steady` elsewhere for its `stale_s_max`, are not reached."""
        keys = np.unique(check_keys(self._where, keys))
        gone = keys[self.get(keys).written != 0]
        self._write(
            [{"DeleteRequest": {"Key": {"key": {"S": name}}}} for name in names(self._stem, keys)],
            "not all rows were removed",
        )
        return len(gone)

    def close(self) -> None:
        """Close the connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._dynamo.close()

    def _item(self, name: str, value: bytes) -> Item:
        item: Item = {"key": {"S": name}, "row": {"B": value}}
        if self._ttl_s:
            item["expires"] = {"N": str(int(self._clock.now()) + self._ttl_s)}
        return item

    def _write(self, requests: list[Item], what: str) -> None:
        self._side_by_side(self._written, requests, WRITE_MAX, what)

    def _side_by_side(self, call: Callable[[Sequence[Any]], T], all_: Sequence[Any], most: int, what: str) -> list[T]:
        """What `call` gives for parts of `all_`; what the client raises as our own errors."""
        parts = [all_[first : first + most] for first in range(0, len(all_), most)]
        try:
            return list(self._threads.map(call, parts)) if len(parts) > 1 else [call(part) for part in parts]
        except self._refused as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code.startswith(_REFUSALS):
                raise errors.Misconfigured(f"{self._where} refuses us ({error}): {what}") from error
            raise errors.Busy(f"{self._where} does not take it now ({error}): {what}") from error
        except self._failures as error:
            raise errors.Busy(f"{self._where} does not answer ({type(error).__name__}: {error}): {what}") from error

    def _read(self, asked: Sequence[str]) -> dict[str, bytes]:
        left: Item = {self._table: {"Keys": [{"key": {"S": name}} for name in asked]}}
        values: dict[str, bytes] = {}
        now = self._clock.now()
        for _ in self._tries():
            answer = self._dynamo.batch_get_item(RequestItems=left)
            for item in answer["Responses"].get(self._table, ()):
                if float(item.get("expires", {}).get("N", "inf")) > now:
                    values[item["key"]["S"]] = item.get("row", {}).get("B", b"")
            left = answer.get("UnprocessedKeys")
            if not left:
                break
        return values

    def _written(self, requests: Sequence[Item]) -> None:
        left: Item = {self._table: list(requests)}
        for _ in self._tries():
            left = self._dynamo.batch_write_item(RequestItems=left).get("UnprocessedItems")
            if not left:
                break

    def _tries(self) -> Iterable[int]:
        """The numbers of tries, with pauses between; after the last: Busy."""
        for number in range(TRIES):
            if number:
                time.sleep(_PAUSE_S * 2**number * random.uniform(0.5, 1.0))
            yield number
        raise errors.Busy(f"{self._where} left items unprocessed {TRIES} times: it takes less than is asked of it")


def _put(item: Item) -> Item:
    return {"PutRequest": {"Item": item}}
