"""Canaries watched while they serve: once a second one process of a service judges each by its guard, and acts.

Rules of the room:
- Of all processes that serve a repository the one that holds the lock `MODEL/watch/lock` decides; it sees the counters
  of all. When it ends, however it ends, another takes the lock and goes on from the state beside it.
- What counts is what was answered since the canary began: counters that begin anew, with their process, do not undo it.
- It acts as a person would, by a change of the policy, and only on the policy it has judged: a person who is faster
  wins, and the canary of a new policy is judged afresh.
- Reading and writing are for a thread; the loop only tells which policies are followed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec.structs import replace

from millstream import errors
from millstream.clock import Clock
from millstream.engine.tally import GROUPS, SCORES, TIMES, WIDTH
from millstream.meter import Meter
from millstream.models.policy import Policy
from millstream.models.repository import Repository
from millstream.models.traffic import Change, only_on, promote
from millstream.store.blob import lock, write_atomic
from millstream.watch.canary.rules import Counts, Verdict, decide, rows

log = logging.getLogger(__name__)

EVERY_S = 1.0
KEPT_S = 5.0  # at most so much of what was counted is lost with a process
FILE = "guard.json"


class Word(msgspec.Struct, frozen=True):
    """What a guard said last, of which canary, and when (unix seconds); `requests` it has seen of the canary, and
    `beside` it of the live version."""

    canary: str
    said: str
    when: float
    requests: int
    beside: int


class State(msgspec.Struct):
    """One canary under watch: the policy it began with, both versions, what their arms did since, and the counters as
    they were read last. What comes between two looks is a `block` of time; GROUPS of them, and it goes round."""

    since: int
    live: str
    canary: str
    counted: tuple[Counts, Counts]
    read: tuple[Counts, Counts]
    block: int = 0
    looks: int = 0
    at: float = 0.0
    said: str = "watched from now on"
    when: float = 0.0


def last_word(repository: Repository, model: str) -> Word | None:
    """What a model's guard said last; None when it never had one."""
    folder = repository.seen(model)
    state = _load(folder / FILE) if folder is not None else None
    if state is None:
        return None
    beside, requests = (int(counts.requests) for counts in state.counted)
    return Word(state.canary, state.said, state.when, requests, beside)


class Guards:
    """The guards of this process. `policies`: model -> the policy that is followed; called on the loop."""

    def __init__(
        self, repository: Repository, meter: Meter, clock: Clock, policies: Callable[[], Mapping[str, Policy]]
    ) -> None:
        self._repository, self._meter, self._clock, self._policies = repository, meter, clock, policies
        self._locks: dict[str, int] = {}
        self._states: dict[str, State] = {}
        self._kept: dict[str, float] = {}  # when each state was written
        self._troubles: dict[str, str] = {}
        self._began: dict[str, tuple[int, int]] = {}  # model -> the policy, and the one that its canary began with
        self._looking = threading.Lock()

    async def keep(self) -> None:
        """Look once a second, until cancelled."""
        while True:
            await self._clock.sleep(EVERY_S)
            guarded = {name: policy for name, policy in self._policies().items() if policy.canary}
            guarded = {name: policy for name, policy in guarded.items() if policy.canary and policy.canary.guard}
            if guarded or self._locks:
                await asyncio.get_running_loop().run_in_executor(None, self.look, guarded)

    def look(self, guarded: Mapping[str, Policy]) -> None:
        """Judge the canary of every policy that this process is the one to decide on. Blocks; never raises."""
        with self._looking:
            for model in [model for model in self._locks if model not in guarded]:
                self._let_go(model)
            for model, policy in guarded.items():
                try:
                    self._judge(model, policy)
                    self._troubles.pop(model, None)
                except errors.Conflict as error:
                    log.info("the guard of %s decides again: %s", model, error)
                except Exception as error:
                    if str(error) != self._troubles.get(model):
                        self._troubles[model] = str(error)
                        log.error("the guard of %s cannot act, and tries again: %s", model, error)

    def close(self) -> None:
        """Keep what was counted, and leave the deciding to others."""
        with self._looking:
            for model in list(self._locks):
                self._let_go(model)

    def _judge(self, model: str, policy: Policy) -> None:
        folder, canary = self._repository.seen(model), policy.canary
        if folder is None or canary is None or canary.guard is None or not self._decides(model, folder):
            return
        now = self._read(model, "live"), self._read(model, "canary")
        since = self._since(model, policy)
        state = self._states.get(model)
        if state is None or (state.since, state.live, state.canary) != (since, policy.live, canary.version):
            nothing = _nothing(), _nothing()
            state = State(since, policy.live, canary.version, nothing, now, when=self._clock.now())
            self._states[model] = state
            self._keep(model, folder, state)
            return
        before = sum(arm.requests for arm in state.counted)
        live, tried = (_more(*three, state.block) for three in zip(state.counted, now, state.read, strict=True))
        state.counted, state.read = (live, tried), now
        if live.requests + tried.requests > before:
            state.block = (state.block + 1) % GROUPS
        verdict = decide(live, tried, canary.guard, state.looks, state.at)
        if not tried.requests:
            said = "no request has reached it: it cannot be judged"
        elif verdict.action == "wait":
            said = verdict.why
        else:
            said = self._act(model, policy, canary.version, verdict)
        looked = verdict.looks > state.looks
        if looked or not state.looks:
            state.said, state.when = said, self._clock.now()
        state.looks, state.at = verdict.looks, verdict.at
        if looked or self._clock.monotonic() - self._kept[model] >= KEPT_S:
            self._keep(model, folder, state)

    def _act(self, model: str, policy: Policy, version: str, verdict: Verdict) -> str:
        """Do what was decided; what to say of it. Conflict: somebody was faster."""
        if verdict.action == "promote" and policy.pin:
            return f"{verdict.why}; {policy.live} is pinned, so it is left to you to promote it"
        change = promote(version) if verdict.action == "promote" else _taken_back
        why = f"canary {version}: {verdict.why}"
        after = self._repository.change_policy(
            model, only_on(policy.version, model, _same(policy, model, change)), who="guard", why=why
        )
        if verdict.action == "promote":
            log.info("%s: canary %s is live now instead of %s: %s", model, version, policy.live, verdict.why)
            return f"promoted it in policy {after.version}: {verdict.why}"
        log.warning("%s: canary %s is taken back, %s stays live: %s", model, version, policy.live, verdict.why)
        return f"took it back in policy {after.version}: {verdict.why}"

    def _decides(self, model: str, folder: Path) -> bool:
        """Whether this process holds the model's lock, now if not before."""
        if model in self._locks:
            return True
        folder.mkdir(exist_ok=True)
        try:
            self._locks[model] = lock(folder / "lock", wait=False)
        except BlockingIOError:
            return False
        if (state := _load(folder / FILE)) is not None:
            if not (self._meter.kept or model in self._kept):  # what was read last was another process's
                state.read = _nothing(), _nothing()
            self._states[model] = state
        self._kept[model] = self._clock.monotonic()
        return True

    def _let_go(self, model: str) -> None:
        folder, state = self._repository.seen(model), self._states.pop(model, None)
        if folder is not None and state is not None:
            with suppress(OSError, errors.Error):  # what was kept before is near enough
                self._keep(model, folder, state)
        os.close(self._locks.pop(model))

    def _keep(self, model: str, folder: Path, state: State) -> None:
        write_atomic(folder / FILE, msgspec.json.encode(state))
        self._kept[model] = self._clock.monotonic()

    def _read(self, model: str, arm: str) -> Counts:
        """An arm's counters, over all processes."""
        labels = {"model": model, "arm": arm}
        failed, seconds, scores, groups = (
            self._meter.values(f"_guard_{name}", labels) for name in ("failures", "seconds", "scores", "groups")
        )
        none = _nothing()
        return Counts(
            sum(failed), seconds[:-1] or none.seconds, scores[:-1] or none.scores, groups[:-1] or none.by_key, []
        )

    def _since(self, model: str, policy: Policy) -> int:
        """The number of the policy that this canary began with, beside this live version."""
        known = self._began.get(model)
        if known is None or known[0] != policy.version:
            since = policy.version
            for before in self._repository.newest_first(model):
                if before.version >= since:
                    continue
                if before.live != policy.live or _version(before) != _version(policy):
                    break
                since = before.version
            known = self._began[model] = policy.version, since
        return known[1]


def _taken_back(policy: Policy) -> Policy:
    return replace(policy, canary=None)


def _same(judged: Policy, model: str, change: Change) -> Change:
    """The change, if the canary is the one that was judged: a file edited by hand keeps its number."""

    def checked(policy: Policy) -> Policy:
        if policy.live != judged.live or _version(policy) != _version(judged):
            raise errors.Conflict(f"the policy of {model} was edited while its canary was judged; it is judged again")
        return change(policy)

    return checked


def _version(policy: Policy) -> str:
    return policy.canary.version if policy.canary else ""


def _nothing() -> Counts:
    groups = [0.0] * (GROUPS * WIDTH)
    return Counts(0.0, [0.0] * (len(TIMES) + 1), [0.0] * (len(SCORES) + 1), groups, groups)


def _more(counted: Counts, now: Counts, before: Counts, block: int) -> Counts:
    """What was counted so far, with what the counters went up by, in this block of time."""
    if now.requests < before.requests:  # they began anew: somebody emptied the folder of counters
        before = _nothing()

    def added(total: Sequence[float], new: Sequence[float], old: Sequence[float]) -> list[float]:
        return [sum_ + max(0.0, up - down) for sum_, up, down in zip(total, new, old, strict=True)]

    by_key = added(counted.by_key, now.by_key, before.by_key)
    more = rows([up - down for up, down in zip(by_key, counted.by_key, strict=True)])
    came = [sum(column) for column in zip(*more, strict=True)]
    by_time, at = list(counted.by_time), block * WIDTH
    by_time[at : at + WIDTH] = [a + b for a, b in zip(by_time[at : at + WIDTH], came, strict=True)]
    return Counts(
        counted.failed + max(0.0, now.failed - before.failed),
        added(counted.seconds, now.seconds, before.seconds),
        added(counted.scores, now.scores, before.scores),
        by_key,
        by_time,
    )


def _load(path: Path) -> State | None:
    """The state in a file; None when there is none that can be read, or one of other buckets."""
    try:
        state = msgspec.json.decode(path.read_bytes(), type=State)
    except (OSError, msgspec.MsgspecError):
        return None
    sizes = len(TIMES) + 1, len(SCORES) + 1, GROUPS * WIDTH
    fits = all((len(c.seconds), len(c.scores), len(c.by_key)) == sizes for c in (*state.counted, *state.read))
    return state if fits and all(len(c.by_time) == GROUPS * WIDTH for c in state.counted) else None
