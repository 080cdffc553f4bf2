"""Settings: what is wrong is named, with what is known and allowed, and nothing misspelt passes in silence."""

import math
import typing

import msgspec
import pytest

from millstream import config
from millstream.app.installation import Settings
from millstream.errors import Misconfigured
from millstream.features import Definition
from millstream.stream import Task

FEATURES = '[features]\nuser = [{name = "id"}]\nitem = [{name = "id"}]\n'
SLICED = '[learn.validate.slices]\n"{}" = ["{}"]\n'


def parse(text: str) -> Settings:
    return config.parse(text, Settings, "millstream.toml")


def refused(text: str) -> str:
    with pytest.raises(Misconfigured) as caught:
        parse(text)
    assert str(caught.value).startswith("millstream.toml: ")
    return str(caught.value)


def test_an_empty_file_is_all_defaults():
    assert parse("") == Settings()


def test_nested_tables_and_inline_tables_are_the_same():
    nested = parse(
        "poll_s = 0.1\n[learn]\nmodel = 'r'\n[learn.push]\npush_s = 2\n[join.tasks.buy]\nkinds = {like = 1, buy = 2}"
    )
    inline = parse(
        "poll_s = 0.1\nlearn = {model = 'r', push = {push_s = 2.0}}\njoin.tasks.buy.kinds = {like = 1.0, buy = 2.0}"
    )
    assert nested == inline
    assert nested.learn.push.push_s == 2.0 and nested.join.kinds("buy") == {"like": 1.0, "buy": 2.0}
    assert nested.learn.gate == Settings().learn.gate


@pytest.mark.parametrize(
    ("text", "named", "neighbour"),
    [
        ("htttp_port = 1", "`htttp_port`", "http_port"),
        ("[join]\nkeep = 3", "`join.keep`", "keep_s"),
        ("[join.tasks.like]\nwindow = 3", "`join.tasks.like.window`", "window_s"),
        ("[learn.push]\npush = 3", "`learn.push.push`", "push_s"),
        ("[log]\nsegment_byte = 3", "`log.segment_byte`", "segment_bytes"),
        ("[http]\nbody_bytes = 3", "`http.body_bytes`", "body_bytes_max"),
        ("[ftrl]\nalfa = 3", "`ftrl.alfa`", "alpha"),
        ('[features]\nuser = [{name = "id", place = 2}]\nitem = [{name = "id"}]', "`features.user.place`", "places"),
        (FEATURES + "cross = []", "`features.cross`", "crosses"),
    ],
)
def test_an_unknown_setting_is_named_with_its_neighbours(text, named, neighbour):
    message = refused(text)
    assert named in message
    assert neighbour in message.split("known there: ")[1].split(", ")


def test_names_of_a_free_table_are_free():
    tasks = parse("[join.tasks.anything]\nkinds = {you = 3}\n[join.tasks.like]").join.tasks
    assert list(tasks) == ["anything", "like"] and tasks["anything"].kinds == {"you": 3.0}


def test_a_setting_that_has_moved_says_where_to():
    assert "`join.window_s` is `join.tasks.NAME.window_s` now" in refused("[join]\nwindow_s = 3")
    assert "`join.positive` is `join.tasks.NAME.kinds` now" in refused("[join.positive]\nlike = 3")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("http_port = 70000", "http_port"),
        ("http_port = '80'", "http_port"),
        ("poll_s = 0", "poll_s"),
        ("poll_s = nan", "poll_s"),
        ("[learn.push]\nbases_kept = 1", "learn.push.bases_kept"),
        ("[learn.gate]\nwindow = 0", "learn.gate.window"),
        ("[join.tasks.like]\nwindow_s = -1", "join.tasks"),
        ("[join]\ntasks = {}", "join.tasks"),
        ("[join.tasks.like]\nlate = 'correct'\ndelayed = 'fnw'", "join.tasks.like"),
        ("[join.tasks.like]\ndelayed = 'defer'", "attribution_s"),
        ("[join.tasks.like]\ndelayed = 'defer'\nattribution_s = 4000", "keep_s above 4000"),
        ("[join.tasks.buy]\nwindow_s = 86400", "join.tasks.buy: window_s = 86400 with join.keep_s = 3600"),
        ("[join]\nkeep_s = 30", "join.tasks.like: window_s = 30 with join.keep_s = 30"),
        ("[join.tasks.like]\nkinds = {like = nan}", "join.tasks.like.kinds: like = nan"),
        ("[join.tasks.like]\nkinds = {like = -inf}", "join.tasks.like.kinds: like = -inf"),
        ("[join.tasks.like]\nkinds = {impression = 1}", "join.tasks.like.kinds: 'impression' is no feedback"),
        ("[join.tasks.like]\nkinds = {watermark = 1}", "'watermark' is no feedback"),
        ("[join.tasks.impression]", "'impression' is no feedback"),
        ("[join]\nfeedback = ['click', 'watermark']", "join.feedback: 'watermark'"),
        ("[learn]\ntask = 'buy'", "learn.task: no task 'buy' in [join.tasks]; there are: like"),
        (SLICED.format("user.sex", "F") + FEATURES, "'user.sex' is no column of [features]; there are: user.id"),
        (SLICED.format("user.id", "") + FEATURES, "'' is no value that user.id can have"),
        (SLICED.format("user.id", "u1"), "learn.validate.slices: user.id: there is no [features] table"),
        ("[engine]\nqueue_rows_max = 0", "engine.queue_rows_max"),
        ("[ftrl]\nbits = 99", "bits"),
        ("join = 3", "join"),
        ('[features]\nuser = [{name = "id"}]\nitem = []\ncrosses = ["user.id*item.x"]', "item.x"),
    ],
)
def test_a_value_that_is_out_of_bounds_is_named(text, named):
    assert named in refused(text)


def test_a_bound_within_a_table_of_a_free_name_says_the_name_and_a_number_what_it_is():
    two = "[join.tasks.like]\n[join.tasks.'a.b']\nwindow_s = -1"
    assert refused(two) == "millstream.toml: Expected `float` >= 0.0 - at `join.tasks.a.b.window_s`, got -1"
    kinds = "join.tasks = {like = {}, buy = {kinds = {order = 1, basket = 'x'}}}"
    assert refused(kinds).endswith("Expected `float`, got `str` - at `join.tasks.buy.kinds.basket`")
    assert refused("poll_s = 2").endswith("- at `poll_s`, got 2")
    assert refused("join.feedback = ['click', 3]").endswith("- at `join.feedback[1]`, got 3")


def test_no_text_is_repeated_as_a_variable_may_have_brought_a_secret(monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    assert "hunter2" not in refused("http_port = '${SECRET}'") + refused("[join.tasks.x]\nwindow_s = '${SECRET}'")


def test_slices_of_a_definition_whose_feature_set_nobody_has_looked_up_yet_are_checked_too():
    text = 'set = "people"\ncrosses = ["user.id*set.likes"]\n'
    assert parse(SLICED.format("user.id", "u1") + FEATURES + text).learn.validate.slices
    assert "no column" in refused(SLICED.format("user.sex", "F") + FEATURES + text)


def test_what_is_not_toml_says_where(tmp_path):
    assert "line 2" in refused("poll_s = 0.1\nthis is not toml")
    file = tmp_path / "x.toml"
    for content in (b"poll_s = \xff", b"=\n"):
        file.write_bytes(content)
        with pytest.raises(Misconfigured, match=r"x\.toml: not TOML"):
            config.read(file, Settings)
    with pytest.raises(Misconfigured, match="No such file"):
        config.read(tmp_path / "none.toml", Settings)
    with pytest.raises(Misconfigured, match="directory"):
        config.read(tmp_path, Settings)


def test_strings_take_variables_from_the_environment(monkeypatch):
    monkeypatch.setenv("KEYS_FILE", "keys.toml")
    monkeypatch.setenv("LIKE", "like")
    assert parse("keys = 'a/${KEYS_FILE}'").keys == "a/keys.toml"
    assert parse("join.feedback = ['${LIKE}', 'x']").join.feedback == ("like", "x")
    assert "${NOT_THERE} is not set" in refused("keys = '${NOT_THERE}'")
    assert parse("# keys = '${NOT_THERE}'") == Settings()
    assert parse("keys = '${not_a_variable}'").keys == "${not_a_variable}"


def test_a_variable_cannot_smuggle_settings_in(monkeypatch):
    for sly in ('x"\nhttp_port = 1\nhost = "0.0.0.0', "x'''\"\"\"\\"):
        monkeypatch.setenv("SLY", sly)
        made = parse('keys = "${SLY}"')
        assert (made.keys, made.http_port, made.host) == (sly, 8000, "127.0.0.1")


def test_every_default_is_within_its_own_bounds_and_round_trips():
    given = msgspec.structs.replace(Settings(), features=Definition.read({"user": [{"name": "id"}], "item": []}))
    for settings in (Settings(), given):
        assert msgspec.convert(msgspec.to_builtins(settings), Settings) == settings


def test_every_setting_is_told_with_its_default():
    told = list(config.settings(Settings))
    names = [name for name, _, _ in told]
    assert len(set(names)) == len(names)
    assert {"http_port", "learn.push.push_s", "log.retain_s", "http.drain_s", "join.tasks"} <= set(names)
    assert {name: default for name, default, _ in told}["join.tasks"] == {"like": {}}
    for name, default, _ in told:
        named = ".NAME." in name and not name.startswith("join.tasks.")
        if name == "join.tasks" or named or name.startswith("watch.deliver."):
            continue  # what is named by the user has no value before
        value = Settings()
        if "join.tasks.NAME." in name:
            name, value = name.removeprefix("join.tasks.NAME."), Task()
        for part in name.split("."):
            value = getattr(value, part)
        assert value == default, name


def numeric(of: type[msgspec.Struct], prefix: str = "") -> typing.Iterator[tuple[str, msgspec.Meta]]:
    for field in msgspec.structs.fields(of):
        kind = getattr(field.type, "__origin__", field.type)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            yield from numeric(kind, f"{prefix}{field.name}.")
        else:
            for meta in _metas(field.type):
                yield f"{prefix}{field.name}", meta


def _metas(kind: object) -> list[msgspec.Meta]:
    return [meta for meta in getattr(kind, "__metadata__", ()) if isinstance(meta, msgspec.Meta)]


def test_every_bound_that_is_declared_holds():
    tried = 0
    for name, meta in numeric(Settings):
        for bound, beyond in ((meta.ge, -1), (meta.gt, 0), (meta.le, 1), (meta.lt, 0)):
            if bound is not None:
                value = bound + beyond if float(bound).is_integer() else math.nextafter(bound, math.inf * beyond)
                assert name in refused(f"{name} = {value}")
                tried += 1
    assert tried > 30
