"""The items of a process: numbers for them, and what is known of each as columns.

Rules of the room:
- An item gets its number when it is first told of and keeps it, deleted or not, as long as the process lives.
- One thread writes, any number read, without a lock. Growing swaps arrays, so a view that a reader holds stays whole.
  A column that is read later than another is at least as long.
- An item is never refused for one odd attribute (attributes.py). A bid of 0, NaN, less, or in words is no bid: the item
  stays. An embedding of another width than the first one is left out and counted.
- The latest attributes of an item count, whole: one that is left out is gone. `deleted` alone leaves the others as they
  were, for the histories that name the item. What is the latest, arrivals say, not the order of telling: several
  partitions tell of one item, and who starts reads one after the other. So a deletion is kept for an item that is not
  known yet.
- `items_max` bounds it; one more is TooLarge. Numbers of deleted items are not given again.
- Who keeps something that follows from the columns (filters, orders) watches: told of each change when it is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.recall import attributes as read
from millstream.recall.lists import Codes, Inverted, Lists
from millstream.recall.scene import Numbers

TEXTS_MAX: Final = 64
"""Tags of one item, and regions of one; those behind are not read."""
CODES_MAX: Final = 1_000_000
"""Different tags, categories and authors each; one more is as if not said, and counted."""
_LEAST: Final = 1024
_COLUMNS: Final[tuple[tuple[str, Any, Any], ...]] = (
    ("alive", np.bool_, False),
    ("blocked", np.bool_, False),
    ("stock", np.bool_, True),
    ("told", np.float64, -np.inf),  # arrival of the attributes that count
    ("gone", np.float64, -np.inf),  # of the latest deletion
    ("dated", np.float64, -np.inf),  # of the latest attributes that said when it was created
    ("created", np.float64, np.inf),
    ("category", np.int32, -1),
    ("author", np.int32, -1),
    ("bid", np.float32, np.nan),
    ("quality", np.float32, np.nan),
    ("min_age", np.float32, 0.0),
    ("impressions", np.int64, 0),
    ("positives", np.int64, 0),
)

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class CatalogueSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which attribute of an item says what, and how many items there may be."""

    category: Annotated[Name, msgspec.Meta(description="attribute with the category of an item")] = "category"
    tags: Annotated[Name, msgspec.Meta(description="with its tags: a list, or a text with | between them")] = "tags"
    regions: Annotated[
        Name, msgspec.Meta(description="with the regions where it may be shown; without any: everywhere")
    ] = "regions"
    stock: Annotated[Name, msgspec.Meta(description="with its stock: 0 or false is out, left out is in")] = "stock"
    min_age: Annotated[
        Name, msgspec.Meta(description="with the years that somebody must have; whose age is unknown sees none such")
    ] = "min_age"
    created: Annotated[
        Name, msgspec.Meta(description="with its date, unix seconds or ISO 8601; left out: when it was first told of")
    ] = "created"
    author: Annotated[Name, msgspec.Meta(description="with its author, seller or channel")] = "author"
    bid: Annotated[Name, msgspec.Meta(description="with what an advertiser pays for a click; above 0, or no ad")] = (
        "bid"
    )
    quality: Annotated[Name, msgspec.Meta(description="with its quality, from whoever judges it")] = "quality"
    embedding: Annotated[Name, msgspec.Meta(description="with a vector of its content; all have one width")] = (
        "embedding"
    )
    title: Annotated[Name, msgspec.Meta(description="with its title, for people")] = "title"
    deleted: Annotated[Name, msgspec.Meta(description="true: it is gone")] = "deleted"
    blocked: Annotated[Name, msgspec.Meta(description="true: it is not recommended, although it is there")] = "blocked"
    items_max: Annotated[int, msgspec.Meta(ge=1, le=100_000_000, description="items known, deleted ones too")] = (
        1_000_000
    )
    regions_max: Annotated[
        int, msgspec.Meta(ge=1, le=10_000, description="different regions; items of further ones are shown in none")
    ] = 256
    embedding_max: Annotated[int, msgspec.Meta(ge=1, le=65_536, description="widest embedding, numbers")] = 2048


class Watcher(Protocol):
    """Who keeps something that follows from the columns. Called by the thread that writes."""

    def changed(self, number: int) -> None:
        """This item is new, or other than it was, or gone, or back."""

    def rebuilt(self) -> None:
        """Anything may be other than it was: begin anew."""


class Vocabulary:
    """Codes for texts, 0 .. `most` - 1 in order of arrival."""

    def __init__(self, most: int, names: Iterable[str] = ()) -> None:
        self.names: list[str] = list(names)
        self._codes = {name: code for code, name in enumerate(self.names)}
        self._most = most

    def code(self, name: str) -> int:
        """The code of a text; -1 when it has none."""
        return self._codes.get(name, -1)

    def made(self, name: str) -> int:
        """The code of a text, which gets one; -1 when there are `most` already."""
        code = self._codes.get(name, -1)
        if code < 0 and len(self.names) < self._most:
            code = len(self.names)
            self.names.append(name)  # before the code: who reads the code finds the name
            self._codes[name] = code
        return code


class Catalogue:
    """Items by number. `odd`: how many attributes were left out, by name."""

    def __init__(self, settings: CatalogueSettings | None = None) -> None:
        self.settings = settings or CatalogueSettings()
        self.odd: dict[str, int] = {}
        self._watchers: list[Watcher] = []
        self._held = False
        self._begin()

    def _begin(self) -> None:
        self._places: dict[str, int] = {}
        self._names: list[str] = []
        self._titles: list[str] = []
        self._count = 0
        self._columns: dict[str, NDArray[Any]] = {
            name: np.full(_LEAST, none, kind) for name, kind, none in _COLUMNS
        } | {"embedding": np.empty((_LEAST, 0), np.float32)}
        self._categories, self._authors, self._tags = (Vocabulary(CODES_MAX) for _ in range(3))
        self._regions = Vocabulary(self.settings.regions_max)
        self._tag_lists, self._region_lists = Lists(), Lists()
        self._tagged, self._in_category = Inverted(), Inverted()

    def watch(self, watcher: Watcher) -> None:
        """Tell this one of each change from now on; it begins with what there is."""
        self._watchers.append(watcher)
        watcher.rebuilt()

    def clear(self) -> None:
        """Know nothing again; watchers begin anew."""
        self._begin()
        self._tell()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Tell watchers once, at the end, of all that is told within: for a start with many items. Until then they do
        not know what is new, nor what has gone."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self._tell()

    # What is known

    @property
    def count(self) -> int:
        """Numbers given: 0 .. count - 1."""
        return self._count

    @property
    def alive(self) -> NDArray[np.bool_]:
        """bool [count]: false for those that were deleted."""
        return self._view("alive")

    @property
    def told(self) -> NDArray[np.float64]:
        """float64 [count]: when the attributes that count arrived, unix seconds."""
        return self._view("told")

    @property
    def blocked(self) -> NDArray[np.bool_]:
        """bool [count]: not to be recommended to anybody."""
        return self._view("blocked")

    @property
    def stock(self) -> NDArray[np.bool_]:
        """bool [count]: there is some, or nothing says otherwise."""
        return self._view("stock")

    @property
    def created(self) -> NDArray[np.float64]:
        """float64 [count]: unix seconds, not after it was told."""
        return self._view("created")

    @property
    def category(self) -> Codes:
        """int32 [count]: a place in `categories`, -1 without one."""
        return self._view("category")

    @property
    def author(self) -> Codes:
        """int32 [count]: a place in `authors`, -1 without one."""
        return self._view("author")

    @property
    def bid(self) -> NDArray[np.float32]:
        """float32 [count]: above 0, NaN for no ad."""
        return self._view("bid")

    @property
    def quality(self) -> NDArray[np.float32]:
        """float32 [count], NaN without one."""
        return self._view("quality")

    @property
    def min_age(self) -> NDArray[np.float32]:
        """float32 [count]: whole years, 0 for none, infinite for nobody."""
        return self._view("min_age")

    @property
    def impressions(self) -> NDArray[np.int64]:
        """int64 [count]: how often it was shown. The thread that writes adds to it here."""
        return self._view("impressions")

    @property
    def positives(self) -> NDArray[np.int64]:
        """int64 [count]: how often it was liked, as live.py counts. The thread that writes adds to it here."""
        return self._view("positives")

    @property
    def embedding(self) -> NDArray[np.float32]:
        """float32 [count, d]: a row of NaN without one; d is that of the first seen, 0 before."""
        return self._view("embedding")

    @property
    def categories(self) -> list[str]:
        return self._categories.names

    @property
    def authors(self) -> list[str]:
        return self._authors.names

    @property
    def tags(self) -> list[str]:
        return self._tags.names

    @property
    def regions(self) -> Vocabulary:
        return self._regions

    def tags_of(self, number: int) -> Codes:
        """int32: places in `tags` of an item, in the order in which they were given."""
        return self._tag_lists.of(number)

    def regions_of(self, number: int) -> Codes:
        """int32: codes of `regions`; -1 for one over the bound. None: everywhere."""
        return self._region_lists.of(number)

    def region_lists(self) -> tuple[NDArray[np.int64], Codes]:
        """(starts int64 [count + 1], codes) of all items; see Lists.flat."""
        return self._region_lists.flat(self._count)

    def tag_counts(self, numbers: Numbers) -> NDArray[np.int64]:
        """int64: how many tags each of these items has."""
        return self._tag_lists.lengths(numbers)

    def tagged(self, tag: int) -> Numbers:
        """The items with a tag, by its place in `tags`, those told of last at the end; deleted ones are among them, and
        -1 where one has lost the tag."""
        return self._tagged.of(tag)

    def in_category(self, category: int) -> Numbers:
        """The items of a category, as `tagged`."""
        return self._in_category.of(category)

    def tagged_count(self, tag: int) -> int:
        """How many items have a tag."""
        return self._tagged.count(tag)

    def in_category_count(self, category: int) -> int:
        """How many items a category has."""
        return self._in_category.count(category)

    def number(self, item: str) -> int:
        """The number of an item; -1 when it is not known."""
        return self._places.get(item, -1)

    def numbers(self, items: Sequence[str]) -> Numbers:
        """int32, as many as `items`; -1 for those that are not known."""
        find = self._places.get
        return np.fromiter((find(item, -1) for item in items), np.int32, len(items))

    def name(self, number: int) -> str:
        """The id of an item."""
        return self._names[number]

    def names(self, numbers: Numbers) -> list[str]:
        """The ids of items, in this order."""
        names = self._names
        return [names[number] for number in numbers.tolist()]

    def title(self, number: int) -> str:
        """Its title; its id without one."""
        return self._titles[number] or self._names[number]

    # What is told

    def check(self, item: str, attributes: Mapping[str, Any]) -> None:
        """BadInput for what `upsert` would leave out and its sender should know: an embedding that is none, or of
        another width than those that are known."""
        value = attributes.get(name := self.settings.embedding)
        if value is None:
            return
        found, width = read.vector(value), self.embedding.shape[1]
        if found is None:
            raise errors.BadInput(f"item {item[:80]!r}: {name} is no list of finite numbers; send one, or leave it out")
        if len(found) > self.settings.embedding_max or width not in (0, len(found)):
            raise errors.BadInput(
                f"item {item[:80]!r}: {name} has {len(found)} numbers, and those that are known have "
                f"{width or f'at most {self.settings.embedding_max}'}; send that many"
            )

    def upsert(self, item: str, attributes: Mapping[str, Any], arrival: float) -> int:
        """Take in an item as it was then: its number. `arrival`: unix seconds when it was told of; what was told later
        counts, and of one moment what comes last. Over `items_max`: TooLarge; -1 for a deletion that would be."""
        number, gone = self._places.get(item, -1), read.truth(attributes.get(self.settings.deleted))
        new = number < 0
        if new:
            if gone and self._count >= self.settings.items_max:
                return -1  # what it deletes has no room either
            number = self._room()
            self._titles.append("")
        columns = self._columns
        if gone:
            columns["alive"][number] &= arrival < columns["told"][number]
            columns["gone"][number] = max(columns["gone"][number], arrival)
        elif arrival >= columns["told"][number]:
            self._write(number, attributes)
            columns["told"][number] = arrival
            columns["alive"][number] |= arrival >= columns["gone"][number]
        self._date(number, None if gone else attributes.get(self.settings.created), arrival)
        if new:
            self._names.append(item)
            self._count = number + 1
            self._places[item] = number  # last: who finds the number finds all that it stands for
        self._tell(number)
        return number

    def remove(self, item: str) -> int:
        """It is recommended no more, until it is told of later than it was: its number, which it keeps; -1 when it is
        not known."""
        number, columns = self._places.get(item, -1), self._columns
        if number >= 0 and columns["alive"][number]:
            columns["alive"][number] = False
            columns["gone"][number] = max(columns["gone"][number], columns["told"][number])
            self._tell(number)
        return number

    def _tell(self, number: int = -1) -> None:
        """Watchers: of one change, or of all that may be."""
        for watcher in () if self._held else self._watchers:
            if number < 0:
                watcher.rebuilt()
            else:
                watcher.changed(number)

    def _date(self, number: int, created: object, arrival: float) -> None:
        """When it was created: as was said last, else when it was first told of."""
        columns = self._columns
        if created is not None:
            if arrival >= columns["dated"][number]:
                columns["created"][number], columns["dated"][number] = read.when(created, arrival), arrival
        elif columns["dated"][number] == -np.inf:
            columns["created"][number] = min(columns["created"][number], arrival)

    def _write(self, number: int, attributes: Mapping[str, Any]) -> None:
        columns, said, settings = self._columns, attributes.get, self.settings
        bid = read.number(said(settings.bid))
        columns["bid"][number] = bid if bid > 0 else np.nan
        columns["quality"][number] = read.number(said(settings.quality))
        columns["min_age"][number] = age = read.age(said(settings.min_age))
        self._note("min_age", int(age == np.inf))
        columns["stock"][number] = read.truth(said(settings.stock), unsaid=True)
        columns["blocked"][number] = read.truth(said(settings.blocked))
        columns["author"][number] = self._code(self._authors, said(settings.author), "author")
        self._put_category(number, self._code(self._categories, said(settings.category), "category"))
        self._put_tags(number, self._codes(self._tags, said(settings.tags), "tags"))
        # A region over the bound stays, as -1: without it the item would be shown everywhere.
        regions = [self._regions.made(text) for text in read.texts(said(settings.regions), TEXTS_MAX)]
        self._note("regions", regions.count(-1))
        if regions or len(self._region_lists.of(number)):
            self._region_lists.put(number, np.array(regions, np.int32))
        self._put_embedding(number, said(settings.embedding))
        title = said(settings.title)
        self._titles[number] = title if isinstance(title, str) else ""

    def _put_category(self, number: int, code: int) -> None:
        old = int(self._columns["category"][number])
        if code != old:
            if old >= 0:
                self._in_category.remove([old], number)
            if code >= 0:
                self._in_category.add([code], number)
        self._columns["category"][number] = code

    def _put_tags(self, number: int, codes: list[int]) -> None:
        old = self._tag_lists.of(number).tolist()
        if codes != old:
            self._tagged.remove([code for code in old if code not in codes], number)
            self._tag_lists.put(number, np.array(codes, np.int32))
            self._tagged.add([code for code in codes if code not in old], number)

    def _put_embedding(self, number: int, value: object) -> None:
        column = self._columns["embedding"]
        found = None if value is None else read.vector(value)
        if found is not None and not column.shape[1] and len(found) <= self.settings.embedding_max:
            column = self._columns["embedding"] = np.full((len(column), len(found)), np.nan, np.float32)
        fits = found is not None and len(found) == column.shape[1]
        column[number] = found if fits else np.nan
        self._note("embedding", int(value is not None and not fits))

    def _code(self, among: Vocabulary, value: object, what: str) -> int:
        found = self._codes(among, value, what)
        return found[0] if found else -1

    def _codes(self, among: Vocabulary, value: object, what: str) -> list[int]:
        if value is None:
            return []
        codes = [among.made(text) for text in read.texts(value, TEXTS_MAX)]
        self._note(what, codes.count(-1))
        return [code for code in codes if code >= 0]

    def _note(self, what: str, count: int) -> None:
        if count:
            self.odd[what] = self.odd.get(what, 0) + count

    def _view(self, name: str) -> NDArray[Any]:
        count = self._count  # before the column: a column that is read later is as long or longer
        return self._columns[name][:count]

    def _room(self) -> int:
        """The next number, with room in every column."""
        number, most = self._count, self.settings.items_max
        if number >= most:
            raise errors.TooLarge(f"the catalogue has {most} items, deleted ones too; raise catalogue.items_max")
        if number == len(self._columns["alive"]):
            size = min(2 * number, max(most, number + 1))
            for name, kind, none in (*_COLUMNS, ("embedding", np.float32, np.nan)):
                old = self._columns[name]
                grown = np.full((size, *old.shape[1:]), none, kind)
                grown[:number] = old
                self._columns[name] = grown
        return number

    # What a restart need not read again

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays, for `restore`. Counts and columns are copies."""
        count = self._count
        arrays = {name: column[:count].copy() for name, column in self._columns.items()}
        for name, lists in (("tag", self._tag_lists), ("region", self._region_lists)):
            arrays[f"{name}_starts"], arrays[f"{name}_codes"] = lists.flat(count)
        texts = {
            "names": self._names[:count], "titles": self._titles[:count], "categories": self.categories,
            "authors": self.authors, "tags": self.tags, "regions": self._regions.names,
        }  # fmt: skip
        return arrays | {name: np.frombuffer(msgspec.msgpack.encode(value), np.uint8) for name, value in texts.items()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """What `state` gave takes the place of all that is here; watchers begin anew. More items than `items_max`, or
        more regions than `regions_max`: TooLarge; anything else than `state` gave: KeyError, ValueError or
        msgspec.MsgspecError. Then nothing changed."""
        texts = {
            name: msgspec.msgpack.decode(state[name].tobytes(), type=list[str])
            for name in ("names", "titles", "categories", "authors", "tags", "regions")
        }
        count, settings = len(texts["names"]), self.settings
        if count > settings.items_max or len(texts["regions"]) > settings.regions_max:
            raise errors.TooLarge(f"{count} items in {len(texts['regions'])} regions: more than the catalogue may have")
        given = {name: state[name] for name in self._columns}
        tags, regions = ((state[f"{name}_starts"], state[f"{name}_codes"]) for name in ("tag", "region"))
        lengths = {len(texts["titles"]), *map(len, given.values()), *(len(starts) - 1 for starts, _ in (tags, regions))}
        if lengths != {count}:
            raise ValueError(f"{count} items with columns of {lengths}")
        self._begin()
        self._names, self._titles = texts["names"], texts["titles"]
        self._places = {name: number for number, name in enumerate(self._names)}
        self._categories, self._authors, self._tags = (
            Vocabulary(CODES_MAX, texts[name]) for name in ("categories", "authors", "tags")
        )
        self._regions = Vocabulary(settings.regions_max, texts["regions"])
        for name, kind, none in (*_COLUMNS, ("embedding", np.float32, np.nan)):
            column = np.full((max(_LEAST, count), *given[name].shape[1:]), none, kind)
            column[:count] = given[name]
            self._columns[name] = column
        self._tag_lists, self._region_lists = Lists.made(*tags), Lists.made(*regions)
        self._tagged, known = Inverted.made(*tags), given["category"] >= 0
        self._in_category = Inverted.made(np.concatenate(([0], np.cumsum(known))), given["category"][known])
        self._count = count
        self._tell()
