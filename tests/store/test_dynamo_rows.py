"""Rows in DynamoDB, as moto's server speaks it: the contract, the service's limits, and what ranking gets without."""

import itertools
import socket
import threading

import boto3
import numpy as np
import pytest
from check_rows import CHECKS, SECOND, T, keys, rows
from moto.server import ThreadedMotoServer

from millstream import errors
from millstream.clock import FakeClock
from millstream.store import dynamo
from millstream.store.away import PAUSE_S_MAX, Steady
from millstream.store.dynamo import DynamoRows
from millstream.store.rows import RowStore

WIDTH = 12
ALL = keys(*range(1, 251))
_numbers = itertools.count()


def values(*numbers):
    return rows(*numbers, width=WIDTH)


@pytest.fixture(scope="module")
def service():
    """The service, empty but for the table `rows`."""
    with pytest.MonkeyPatch.context() as patch:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        client = boto3.client("dynamodb")
        client.create_table(
            TableName="rows",
            KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "key", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        yield client
        server.stop()


@pytest.fixture
def make(service):
    """A store of its own label."""
    made = []

    def one(width=WIDTH, **more):
        made.append(DynamoRows("rows", f"{next(_numbers)}:user", width, **{"timeout_s": 10.0} | more))
        return made[-1]

    yield one
    for store in made:
        store.close()


@pytest.fixture
def filled(make):
    """Rows 1 to 250 are there, as of T."""
    store = make()
    store.put(ALL, values(*ALL.tolist()), T)
    store.vouch(T)
    return store


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_is_a_row_store(check, make):
    check(make)


def test_types_say_so(make):
    held: RowStore = make()
    assert held.width == WIDTH


def test_items_are_as_written_down(filled, service):
    item = service.get_item(TableName="rows", Key={"key": {"S": f"{filled._stem}00000000000000fa"}})["Item"]
    assert item["row"]["B"] == T.to_bytes(8, "little") + values(250).tobytes() and "expires" not in item
    item = service.get_item(TableName="rows", Key={"key": {"S": f"{filled._stem}vouched"}})["Item"]
    assert item["row"]["B"] == T.to_bytes(8, "little")


def counting(store, monkeypatch, name, unprocessed=lambda call, given: []):
    """Sizes of requests to the service; `unprocessed` says what of each it hands back."""
    real, sizes, reads = getattr(store._dynamo, name), [], name == "batch_get_item"

    def wrapped(these):
        return {"rows": {"Keys": these} if reads else these} if these else {}

    def counted(**asked):
        given = asked["RequestItems"]["rows"]
        given = given["Keys"] if reads else given
        sizes.append(len(given))
        back = unprocessed(len(sizes), given)
        taken = [one for one in given if one not in back]
        said = real(RequestItems=wrapped(taken)) if taken else {"Responses": {}}
        return said | {"UnprocessedKeys" if reads else "UnprocessedItems": wrapped(back)}

    monkeypatch.setattr(store._dynamo, name, counted)
    return sizes


def test_requests_are_as_large_as_the_service_takes_them(filled, monkeypatch):
    read, written = counting(filled, monkeypatch, "batch_get_item"), counting(filled, monkeypatch, "batch_write_item")
    filled.get(np.concatenate([ALL, ALL]))
    assert sorted(read) == [51, 100, 100], "each key once, and what was vouched for"
    filled.vouched()
    assert len(read) == 3
    filled.put(np.concatenate([ALL, ALL]), values(*ALL.tolist(), *ALL.tolist()), T)
    assert written == [25] * 10


def test_what_is_handed_back_is_asked_for_again(filled, monkeypatch):
    monkeypatch.setattr(dynamo, "_PAUSE_S", 0.0)

    def half(call, given):
        return given[::2] if call <= 3 else []

    read = counting(filled, monkeypatch, "batch_get_item", half)
    assert filled.get(ALL[:99]).rows.tolist() == values(*range(1, 100)).tolist() and read == [100, 50, 25, 13]
    written = counting(filled, monkeypatch, "batch_write_item", half)
    filled.put(ALL[:16], values(*[9] * 16), T)
    assert written == [16, 8, 4, 2]
    assert filled.get(ALL[:17]).rows.tolist() == values(*[9] * 16, 17).tolist()


def test_a_service_that_goes_on_handing_back_is_busy(filled, monkeypatch):
    monkeypatch.setattr(dynamo, "_PAUSE_S", 0.0)
    read = counting(filled, monkeypatch, "batch_get_item", lambda _, given: given[:1])
    with pytest.raises(errors.Busy, match=f"left items unprocessed {dynamo.TRIES} times"):
        filled.get(ALL[:5])
    assert len(read) == dynamo.TRIES
    counting(filled, monkeypatch, "batch_write_item", lambda _, given: given[:1])
    with pytest.raises(errors.Busy, match="left items unprocessed"):
        filled.put(ALL, values(*ALL.tolist()), T)


def test_what_has_expired_is_missing_though_it_is_there(make, service):
    clock = FakeClock()
    store = make(ttl_s=60, clock=clock)
    store.put(ALL[:2], values(1, 2), T)
    store.vouch(T)
    clock.advance(59.0)
    store.put(ALL[1:2], values(3), T)
    assert store.get(ALL[:2]).written.tolist() == [T, T]
    clock.advance(1.0)
    assert store.get(ALL[:2]).written.tolist() == [0, T] and store.vouched() == T
    item = service.get_item(TableName="rows", Key={"key": {"S": f"{store._stem}0000000000000001"}})["Item"]
    assert item["expires"] == {"N": "1000000060"}


def test_a_value_of_another_layout_is_missing_counted_and_said_once(filled, service, caplog):
    for number, item in enumerate([{"row": {"B": b"short"}}, {"row": {"S": "text"}}, {}], 1):
        service.put_item(TableName="rows", Item={"key": {"S": f"{filled._stem}{number:016x}"}} | item)
    for _ in "ab":
        assert filled.get(ALL[:4]).written.tolist() == [0, 0, 0, T]
    assert filled.odd == 6
    assert [record.message for record in caplog.records if "no rows of 12 bytes" in record.message] == [
        f"DynamoDB table rows {filled._stem[:-1]}: 3 values are no rows of 12 bytes; they are missing"
    ]


def test_a_table_that_is_not_there_is_misconfigured_and_ranking_goes_on(service):
    store = DynamoRows("nowhere", "a", WIDTH)
    with pytest.raises(errors.Misconfigured, match=r"table nowhere a refuses us .*ResourceNotFound"):
        store.put(ALL[:1], values(1), T)
    reading = Steady(store, timeout_s=30.0)
    assert not reading.get(ALL).written.any() and reading.failures == 1 and reading.vouched() == 0
    reading.close()
    store.close()


def test_what_was_read_lately_is_served_while_the_service_is_gone(filled, monkeypatch):
    clock = FakeClock()
    store = Steady(filled, clock=clock, timeout_s=30.0)
    assert store.get(ALL).written.all()
    here = filled._dynamo
    with monkeypatch.context() as gone, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and nobody listens
        gone.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        filled._dynamo = DynamoRows("rows", "a", WIDTH, timeout_s=1.0)._dynamo
        found = store.get(ALL)
        assert found.rows.tolist() == values(*ALL.tolist()).tolist() and found.written.all()
        assert (store.failures, store.stale, store.vouched()) == (1, len(ALL), T)
        clock.advance(60.1)
        assert not store.get(ALL).written.any() and store.failures == 2
        with pytest.raises(errors.Busy, match=r"does not answer .*its rows were not all written"):
            store.put(ALL, values(*ALL.tolist()), T + SECOND)
    filled._dynamo = here
    store.put(ALL, values(*[7] * len(ALL)), T + SECOND)
    clock.advance(PAUSE_S_MAX)
    assert store.get(ALL).written.tolist() == [T + SECOND] * len(ALL) and not store.down
    store.close()


def test_requests_go_side_by_side(filled, monkeypatch):
    """Each of three waits until all are there."""
    real, all_there = filled._dynamo.batch_get_item, threading.Barrier(3)

    def waits(**given):
        all_there.wait(20)
        return real(**given)

    monkeypatch.setattr(filled._dynamo, "batch_get_item", waits)
    assert filled.get(ALL).written.all()


def test_a_region_that_is_not_known_is_said(monkeypatch, service):
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(errors.Misconfigured, match="region"):
        DynamoRows("rows", "a", WIDTH)


def test_a_package_that_is_missing_is_named_with_its_install_line(monkeypatch):
    real = dynamo.importlib.import_module

    def without(name):
        if name == "boto3":
            raise ImportError(f"no {name}")
        return real(name)

    monkeypatch.setattr(dynamo.importlib, "import_module", without)
    with pytest.raises(errors.Missing, match=r"pip install 'millstream\[dynamodb\]'"):
        DynamoRows("rows", "a", WIDTH)
