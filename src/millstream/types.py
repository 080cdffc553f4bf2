"""The nouns of the house. Imports nothing of it.

Rules of the room:
- What a process keeps in memory is a plain Struct; what crosses a border (the log, the wire) is a *tagged* Struct,
  so that a reader knows what it holds and an old reader refuses a new thing instead of misreading it.
- Times are unix seconds (float). `event_time` is the client's, `arrival` is stamped by this system.
- Arrays inside events are little-endian bytes with the dtype in the docstring: fixed, packed, readable by anyone.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype("<u2"),
    "BYTES": np.dtype("O"),
}
"""The V2 protocol's datatypes and what each is in memory. BF16 is its raw bits, as numpy has no such type; BYTES is an
object array of str or bytes."""
Text = Annotated[str, msgspec.Meta(extra={"free_text": True})]
"""Words of a person. They lose what is personal before they are written; see stream/event.py."""


class TensorSpec(msgspec.Struct, frozen=True):
    """A named array of a model: V2 `datatype` (FP32, INT64, BYTES ...), `shape` with -1 for a free dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Description(msgspec.Struct, frozen=True):
    """What a caller may know of a served model before calling it. `versions`: those that answer now."""

    model: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def alike(self, other: Description) -> bool:
        """Whether both take and give the same tensors."""
        return (self.inputs, self.outputs) == (other.inputs, other.outputs)


class Principal(msgspec.Struct, frozen=True):
    """Who asks. `verbs` holds "model:verb" patterns ("*:infer", "ranker:*"); see guard/auth.py. `tenants`: those that
    it speaks for; none said: all there are."""

    name: str
    verbs: tuple[str, ...] = ("*:*",)
    tenants: tuple[str, ...] = ()


class Turn(msgspec.Struct):
    """One step of a session: a caller's stream whose state the model carries from step to step.

    `id` is the caller's (empty with `start`: one is made); it means something within its `owner` only. `start` begins
    anew, `end` frees the state after this step. `step` counts from 1; 0 leaves it unsaid, else it makes a retry
    harmless. `token` proves that this is the same session, also after a reconnect or in another process.
    """

    id: str = ""
    start: bool = False
    end: bool = False
    step: int = 0
    token: str = ""
    owner: str = ""


class Leeway(msgspec.Struct, frozen=True):
    """What a caller leaves to the version that answers. `spare`: inputs that a version is given only where it takes
    them, of two dimensions the last columns where it takes fewer; `reads`: outputs that it must have, beside whatever
    others."""

    spare: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


class Request(msgspec.Struct):
    """One call of one model: named arrays whose first dimension is the row, the unit of batching. An input of one row
    beside others of many belongs to all of those.

    `version` empty means: by policy. `key` makes a split sticky (a user id); empty means the request id. `priority`: a
    lower number goes first; 0 is what nobody asked for. `timeout_s`: seconds it may take; 0: what the model says.
    `leeway`: None where versions that take or give other tensors than the live one must not answer.
    """

    model: str
    inputs: dict[str, Array]
    rows: int
    id: str = ""
    version: str = ""
    key: str = ""
    outputs: tuple[str, ...] = ()
    priority: int = 0
    timeout_s: float = 0.0
    turn: Turn | None = None
    leeway: Leeway | None = None


class Ran(msgspec.Struct):
    """One call of a model, told to everyone whose rows it computed: `requests` and `rows` in it, the share of its
    elements that was `padding`, and seconds to join (`copy_s`), compute and split."""

    requests: int
    rows: int
    padding: float = 0.0
    copy_s: float = 0.0
    compute_s: float = 0.0
    split_s: float = 0.0


class Output(msgspec.Struct):
    """What a model answered: named arrays, rows first, and the exact `version@delta` that computed all of them.

    `queue_s`: seconds it waited. `turn`: of a session, with its id, token and the step that this was. `cached`: the
    version had computed it before, for a request with the same inputs.
    """

    outputs: dict[str, Array]
    model: str
    version: str
    policy: int = 0
    arm: str = "live"
    queue_s: float = 0.0
    ran: Ran | None = None
    turn: Turn | None = None
    cached: bool = False


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """How a served version is batched. `rows_max` 0: its rows never join. `instances` batches run at once on `device`.
    `preferred` sizes in rows; `sessions`: how many it carries at once, 0 when it has no state."""

    description: Description
    version: str
    rows_max: int
    instances: int = 1
    device: str = "cpu"
    preferred: tuple[int, ...] = ()
    wait_s: float = 0.0
    timeout_s: float = 0.0
    p99_s: float = 0.0
    queue_rows_max: int = 0
    sessions: int = 0
    idle_s: float = 0.0


class Spent(msgspec.Struct):
    """So many events, and the nanoseconds they took together."""

    count: int = 0
    ns: int = 0


class BatchStatistics(msgspec.Struct):
    """The calls of a model with so many rows."""

    rows: int
    copy: Spent
    compute: Spent
    split: Spent


class Statistics(msgspec.Struct, kw_only=True):
    """What a version has done in this process. `rows` computed in `batches` calls; `last_ms`: unix milliseconds of the
    last request, 0 when none. `success`, `fail` and the phases count requests."""

    model: str
    version: str
    last_ms: int = 0
    rows: int = 0
    batches: int = 0
    success: Spent
    fail: Spent
    queue: Spent
    copy: Spent
    compute: Spent
    split: Spent
    by_rows: list[BatchStatistics] = []


class Listed(msgspec.Struct, frozen=True):
    """A version in the repository. `state`: READY, LOADING or UNAVAILABLE; `reason` says why it does not answer."""

    model: str
    version: str
    state: str
    reason: str = ""


class Candidate(msgspec.Struct, frozen=True):
    """An item in an answer, in rank order."""

    item: str
    score: float


class Rank(msgspec.Struct, kw_only=True):
    """Ask for candidates in rank order for a user. `id` is the client's and idempotent: asked twice, logged once.
    `tenant`: whose all these names are, where there are tenants."""

    id: str
    user: str
    candidates: tuple[str, ...]
    model: str = ""
    event_time: float = 0.0
    tenant: str = ""


class Ranked(msgspec.Struct):
    """The answer to `Rank`: best first, with the version@delta that scored every candidate."""

    id: str
    model: str
    version: str
    items: list[Candidate]


class Ask(msgspec.Struct, kw_only=True):
    """Ask for a list for somebody: items are recalled, ranked and put in order. `id` is the client's and idempotent.

    `user` or `visitor` (somebody without an account) is named; `placement`: where the list will stand, of those that
    are configured; `candidates`: items of the caller's own, beside what is recalled; `exclude`: items that must not
    come; `context`: what the caller knows of the moment; `similar`: the list is to be like this item. `cursor`: of the
    page before; then nothing else counts. `n`: items on a page. `tenant`: as in `Rank`.
    """

    id: str
    user: str = ""
    visitor: str = ""
    placement: str = ""
    n: int = 0
    candidates: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    context: dict[str, str | float | bool] = {}
    similar: str = ""
    cursor: str = ""
    explain: bool = False
    event_time: float = 0.0
    tenant: str = ""


class Slot(msgspec.Struct, frozen=True, omit_defaults=True):
    """An item in a list. `reasons`: of each step that had a say; `price`: of a click on an ad; `why`: how it came
    there, where asked for."""

    item: str
    score: float
    reasons: list[str] = []
    price: float = 0.0
    why: dict[str, Any] | None = None


class Listing(msgspec.Struct, omit_defaults=True):
    """The answer to `Ask`: one page of the list, and the `cursor` of the next where there is one.

    `model`, `version`: what scored, empty where nothing did; `missed`: recall paths that were too late or failed, and
    "rank" where the ranker did; `relaxed`: how often a constraint was given up for want of candidates.
    """

    id: str
    model: str
    version: str
    items: list[Slot]
    arm: str = ""
    cursor: str = ""
    missed: list[str] = []
    relaxed: dict[str, int] = {}


class Outcome(msgspec.Struct, frozen=True, kw_only=True, tag="outcome"):
    """What a person did with one item of one answer.

    `kind` is "impression" (it was shown), a feedback kind such as "like" with `value`, or "watermark", which carries
    no item and only says that no event older than `event_time` is still to come. `event_time` 0 means: when it arrives.
    `id` makes a retry harmless; empty means `request/item/kind`. `text` is what the person wrote, if anything.
    """

    request: str = ""
    item: str = ""
    kind: str
    value: float = 1.0
    event_time: float = 0.0
    id: str = ""
    text: Text = ""

    def key(self) -> str:
        return self.id or f"{self.request}/{self.item}/{self.kind}"


class TenantOutcome(Outcome, frozen=True, kw_only=True, tag="outcome"):
    """An outcome as a caller tells it who says whose it is. The log has a plain one, its names being of the tenant."""

    tenant: str = ""


class Beside(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a model beside the ranker said of the candidates: its `version@delta`, "" where it was too late or failed,
    and the outputs that were read, float32 LE, one a candidate."""

    version: str = ""
    outputs: dict[str, bytes] = {}


class Served(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="served"):
    """One answered request, written before the answer leaves.

    `tokens`: uint32 LE, len(candidates) x width, the feature rows that were scored; `definition`: hash of the feature
    definition that made them; `scores`: float32 LE, one a candidate, in the order of `candidates`. Where answers
    explore, `propensities`: float32 LE, how likely each candidate was to be put first, and `explored`: the place in
    `candidates` of the one that chance put first, -1 for none.

    Of a list that was recalled and put in order (`placement` is not empty): `order`: uint32 LE, places in `candidates`,
    in the order of the list; `reasons`: one text an item of the list; `sources`: uint32 LE a candidate, bit i for
    `paths[i]` that found it; `late`: paths that were too late or failed; `recalled`: float32 LE a candidate, its score
    in recall; `slate`: all that re-ranking looked at (flows/rerank/slate.py), `rules`: the arm of rules it went by,
    `rules_hash`: what these were (`Rules.hash`), `seed`: its chance; `ranker`: what answered for a ranker that could
    not; `history`: the user's, newest last; `prices`: float32 LE, of a click on each item of the list, NaN where nobody
    pays, none where nothing is sold;
    `asked`: digest of the request, by which a retry is known; `beside`: by name, the models beside the ranker that were
    asked.
    """

    request: str
    model: str
    version: str
    policy: int
    arm: str
    user: str
    candidates: list[str]
    event_time: float
    definition: str = ""
    tokens: bytes = b""
    scores: bytes = b""
    propensities: bytes = b""
    explored: int = -1
    placement: str = ""
    order: bytes = b""
    reasons: list[str] = []
    sources: bytes = b""
    paths: list[str] = []
    late: list[str] = []
    recalled: bytes = b""
    slate: bytes = b""
    rules: str = ""
    context: dict[str, str | float | bool] = {}
    seed: int = 0
    ranker: str = ""
    history: list[str] = []
    prices: bytes = b""
    asked: bytes = b""
    beside: dict[str, Beside] = {}
    rules_hash: str = ""


class Merge(msgspec.Struct, frozen=True, kw_only=True, tag="merge"):
    """A visitor turned out to be this user: what the visitor did is the user's."""

    visitor: str
    user: str
    event_time: float = 0.0


class Shadow(msgspec.Struct, frozen=True, kw_only=True, tag="shadow"):
    """What a shadow version would have answered to a request: `scores` float32 LE, in the order of the inputs' rows."""

    request: str
    model: str
    version: str
    scores: bytes


class Example(msgspec.Struct, frozen=True, kw_only=True, tag="example"):
    """One shown item with its label, ready to learn.

    `tokens`: uint32 LE, the logged feature row; `arrival`: when the deciding outcome reached the service; `wait_s`: how
    much of the time since then was the label window, not delay; `outcomes`: keys of every outcome it consumed;
    `definition`: hash of the feature definition that made the row. `task`: what the label says of the item (a name in
    `[join.tasks]`); `form`: "" for a task's one example of an item, else which of several (stream/join.py).
    """

    request: str
    item: str
    model: str
    version: str
    tokens: bytes
    score: float
    label: float
    weight: float
    event_time: float
    arrival: float
    wait_s: float
    outcomes: list[str]
    definition: str = ""
    task: str = ""
    form: str = ""


class SetAside(msgspec.Struct, frozen=True, kw_only=True, tag="set_aside"):
    """An acknowledged outcome that will not be learnt, and why: unknown_request, unknown_kind, expired, late,
    no_impression, not_a_candidate, duplicate. `count`: so many of them together, then without their keys."""

    outcome: str
    cause: str
    request: str
    item: str
    event_time: float
    count: int = 1


class Delta(msgspec.Struct, frozen=True, kw_only=True, tag="delta"):
    """New weights of the slots that learning touched since the last delta on the same base.

    Absolute values, not differences: applying one twice is harmless. `slots`: uint32 LE; `weights`: float32 LE, as many
    to a slot as its learner has; `dense`: float32 LE, all weights that belong to no slot; `calibration`: float64 LE,
    slope and intercept, none where they stay as they are (models/online/correction.py). `upto`: position in `examples`
    that the weights contain; `arrivals`: float64 LE, per contained example its arrival + wait_s (staleness counts from
    there); `checksum`: crc32 of slots + weights + dense + calibration.
    """

    model: str
    base: str
    sequence: int
    upto: int
    slots: bytes
    weights: bytes
    arrivals: bytes
    checksum: int
    dense: bytes = b""
    calibration: bytes = b""


class PolicyChange(msgspec.Struct, frozen=True, kw_only=True, tag="policy"):
    """A change of traffic: who, why, and the policy file's text after it."""

    model: str
    version: int
    who: str
    why: str
    text: str


class Readings(msgspec.Struct, frozen=True, kw_only=True, tag="readings", omit_defaults=True):
    """What the monitors of one role `watch` read at a moment, `at`: `values` float64 LE, one a key, a key as
    `watch.reading.Key` writes it. No keys: those of this writer's record before. A count is of the time since the
    readings before; a level is how it stands."""

    at: float
    values: bytes
    keys: list[str] = []


class Alert(msgspec.Struct, frozen=True, kw_only=True, tag="alert", omit_defaults=True):
    """A rule that holds of something, or holds no more.

    `id`: of this rule and these `labels` since it began to hold; `state`: "firing" or "resolved"; `value` was read
    where `limit` is allowed; `since`, `at`: unix seconds when it began to hold, and of this word; `said`: all of it in
    a sentence; `runbook`: where to read what to do; `did`: what was done by it, and how to undo that.
    """

    id: str
    rule: str
    severity: str
    state: str
    labels: dict[str, str]
    value: float
    limit: float
    since: float
    at: float
    said: str
    runbook: str = ""
    did: str = ""


class Review(msgspec.Struct, frozen=True, kw_only=True, tag="review", omit_defaults=True):
    """A scored row that is worth a person's look: an event of topic `reviews`.

    `id`: of this request and item, always the same; `tokens`, `definition`: as in `Example`; `score`: as served, and
    `calibrated`; `reasons`: why it is here, the first counts; `worth`: in [0, 1], of two of one reason the higher comes
    first; `said`: why, in a sentence; `shown`: what a person is told of the item and the user; `others`: what other
    models or versions made of it; `partition`, `offset`: of the served event; `at`: when it was chosen, unix seconds.
    """

    id: str
    request: str
    item: str
    user: str
    model: str
    version: str
    definition: str
    tokens: bytes
    score: float
    calibrated: float
    reasons: list[str]
    worth: float
    event_time: float
    at: float
    said: Text = ""
    shown: dict[str, str | int | float | list[str | int | float] | None] = {}
    others: dict[str, float] = {}
    partition: int = 0
    offset: int = 0


class ReviewLabel(msgspec.Struct, frozen=True, kw_only=True, tag="review_label"):
    """What a person said of a review: `label` is "positive", "negative" or "skip". Of two the later counts."""

    id: str
    label: str
    who: str
    at: float


class Entity(msgspec.Struct, frozen=True, kw_only=True, tag="entity"):
    """A user or an item as it is known now: an event of topic `users` or `items`, the latest of an id counts."""

    id: str
    attributes: dict[str, str | int | float | list[str | int | float] | None]


class Fact(msgspec.Struct, frozen=True, kw_only=True, tag="fact", gc=False, omit_defaults=True):
    """One row of a source of features that a back end wrote: column -> its text or number, None or left out where it is
    missing. Columns `user` and `item` name a person and an item; `names`: other columns that name something, which the
    gate in stream/event.py is told and the log does not keep."""

    event_time: float
    values: dict[str, str | float | None]
    names: tuple[str, ...] = ()


class FeaturesRead(msgspec.Struct, frozen=True, kw_only=True, tag="features_read"):
    """A sample of what serving read: `values` float64 LE, n x columns, of the set `features` in its definition `hash`,
    for the entities named in `keys` (n each, or one) as of `at`; the rows were as of `as_of`. Unix microseconds.
    `request`: what transforms took of the request."""

    features: str
    hash: str
    at: int
    as_of: int
    keys: dict[str, list[str]]
    values: bytes
    request: dict[str, list[float]] = {}


class Forgotten(msgspec.Struct, frozen=True, tag="forgotten"):
    """What is left of a record of somebody who was forgotten: its place in the log, and nothing of what it said."""


class Roll(msgspec.Struct, frozen=True, kw_only=True, tag="roll"):
    """Every role begins new segments of the partitions that it writes. `at`: unix seconds when this was asked."""

    at: float


class Forget(msgspec.Struct, frozen=True, kw_only=True, tag="forget"):
    """Every role forgets entities of a `kind` ("user": people).

    `digests`: of their names, BLAKE2b of 16 bytes keyed with `salt`; `keys`: hashes under which their rows are kept;
    `cut`: what the log has before these offsets (topic -> partition -> offset) is going; `served`: they made requests,
    of which examples may have been learnt; `at`: unix seconds when this was asked.
    """

    at: float
    kind: str
    salt: bytes
    digests: list[bytes]
    keys: list[int]
    cut: dict[str, dict[int, int]]
    served: bool = False


class Forgot(msgspec.Struct, frozen=True, kw_only=True, tag="forgot"):
    """A role, process `by`, has done what stands at offset `of` of topic `forget`: how much of what it removed."""

    of: int
    by: int
    counts: dict[str, int] = {}
