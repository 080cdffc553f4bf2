"""The learner of one model: follow the policy, fold examples, pass the gate, push.

A life of it: take the live version from the policy; if learning did not make it, start a base from it; fold what
`examples` holds beyond the base; then, at each step, fold, observe, and push when due. When it is killed it does the
same again and stands where it stood: everything it knows is the base plus the fold. What it had pushed already is
folded in silence then: it is neither counted twice nor pushed in pieces, so served weights never go back in time.

The policy file commands it. `learning = "paused"` or a `pin` stops folding where it is. When a person makes another
version live (a roll back), learning continues from that version, and from the *present* position: the examples that
the rolled back weights had learnt are not learnt again. So it is with what the gate refused: when a person lets it
run again, learning stands on the weights of the last push and goes on after the refused examples, or it would be
refused for them for ever.
"""

from __future__ import annotations

import logging
from typing import Annotated

import msgspec

from millstream.clock import Clock
from millstream.errors import Conflict, Corrupt, Error, Misconfigured
from millstream.learn.gate import Gate, GateSettings
from millstream.learn.push import Push, PushSettings
from millstream.learn.train import Folded, Training
from millstream.meter import Meter
from millstream.models.online import Ftrl
from millstream.models.policy import Policy
from millstream.models.repository import Repository, Stamp
from millstream.stream.event import decode
from millstream.stream.log import Log, Writer
from millstream.types import Delta

MADE_BY = "millstream learn"
logger = logging.getLogger("millstream.learn")


class LearnSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What learns, and how it reaches the servers."""

    model: Annotated[str, msgspec.Meta(description="the model that learns; empty: nothing learns")] = ""
    push: PushSettings = PushSettings()
    gate: GateSettings = GateSettings()


class Learning:
    """One model's learner. `step()` does what is due and says how many examples it learnt."""

    def __init__(
        self, settings: LearnSettings, repository: Repository, log: Log, deltas: Writer, clock: Clock, meter: Meter
    ) -> None:
        self._settings, self._repository, self._log, self._clock = settings, repository, log, clock
        self._deltas = deltas
        self._gate = Gate(settings.gate)
        self._training: Training | None = None
        self._push: Push | None = None
        self._pushed_at = clock.monotonic()
        self._based_at = 0
        self._since: list[float] = []
        self._problem = ""
        self._unusable: tuple[Stamp, Stamp] | None = None
        self._learnt = meter.counter("millstream_examples_learnt_total", "Examples folded into the weights.")
        self._waited = meter.histogram(
            "millstream_label_wait_seconds", "What an example waited for its label: no part of staleness."
        )
        self._skipped = meter.counter(
            "millstream_examples_skipped_total", "Examples whose rows another feature definition made."
        )
        self._pushes = meter.counter("millstream_pushes_total", "Deltas and bases pushed to the servers.")
        self._refused = meter.counter("millstream_pushes_refused_total", "Pushes the gate refused.")

    @property
    def training(self) -> Training | None:
        """The fold as it stands; None before the first step found a live version."""
        return self._training

    def step(self) -> int:
        """Follow the policy, fold what came, push what is due; how many examples that was."""
        policy = self._follows()
        if policy is None:
            return 0
        if self._push is None or self._push.base != policy.live:
            self._follow(policy)
        if self._training is None or self._push is None:  # nothing to learn on, or the policy has changed meanwhile
            return 0
        folded = self._training.step()
        if folded is not None:
            self._observe(folded)
        if self._since and self._clock.monotonic() - self._pushed_at >= self._settings.push.push_s:
            due = self._training.upto - self._based_at >= self._settings.push.base_examples
            if self._push_delta(self._training, self._push) and due:
                self._new_base(self._push.base)
        return len(folded.batch.labels) if folded else 0

    def rebase(self, last: int) -> bool:
        """Put the weights as they are as a new base, where a restart would fold example `last`, which is going, again:
        weights stay what was folded. Whether that was done; nothing is where nothing learns now."""
        policy = self._follows()
        if policy is None:
            return False
        if self._push is None or self._push.base != policy.live:
            self._follow(policy)
        if self._training is None or self._push is None or self._based_at > last:
            return False
        if self._since and not self._push_delta(self._training, self._push):
            return False
        self._new_base(self._push.base)
        return True

    def reached(self, last: int) -> bool:
        """Whether example `last` is folded, or nothing is folded now."""
        return self._follows() is None or self._training is None or self._training.upto > last

    def _follows(self) -> Policy | None:
        """The policy, where it lets the model learn."""
        if not self._settings.model or self._settings.model not in self._repository.models():
            return None
        policy = self._policy()
        if policy is None or policy.learning == "paused" or policy.pin or not policy.live:
            return None
        return policy

    def _policy(self) -> Policy | None:
        """None while the file cannot be used: a slip of the pen stops learning, not the role, and is said once."""
        try:
            policy = self._repository.policy(self._settings.model)
        except Misconfigured as error:
            self._wait(error)
            return None
        return policy

    def _wait(self, error: Error) -> None:
        """Learning cannot go on; the join can, so the role lives. Said once."""
        self._training = self._push = None
        if str(error) != self._problem:
            logger.error("learning waits: %s", error)
        self._problem = str(error)

    def _observe(self, folded: Folded) -> None:
        self._gate.observe(folded.predicted, folded.batch.labels)
        self._since += folded.batch.since.tolist()
        for seconds in folded.batch.waited.tolist():
            self._waited.observe(seconds)
        self._learnt.add(len(folded.batch.labels))
        self._skipped.add(folded.skipped)

    def _follow(self, policy: Policy) -> None:
        """Stand on the live version; if learning did not make it, put a base that starts from it."""
        model, live = self._settings.model, policy.live
        stamp = self._repository.stamp(model), self._repository.stamp(model, live)
        if stamp == self._unusable:  # reading it all again would say the same
            return
        try:
            manifest = self._repository.verify(model, live)
            learner, _ = Ftrl.load(self._repository.folder(model, live) / manifest.file)
        except Error as error:
            self._unusable = stamp
            self._wait(error)
            return
        self._problem = ""
        upto = int(str(manifest.lineage.get("upto", 0)))
        newest = self._log.committed(self._group, "bases").get(0, 0)
        pushed = self._log.committed(self._group, "examples").get(0, 0)
        refused = self._log.committed(self._group, "refused").get(0, 0)
        self._training = Training(learner, model, manifest.features, self._log.reader("examples"), upto)
        if manifest.lineage.get("made_by") != MADE_BY or int(live) < newest:  # somebody's own version, or a roll back
            self._training.upto = max(upto, pushed, refused)
            self._new_base(live)
            return
        sequence, reached = self._last_delta(live, int(str(manifest.lineage["deltas_from"])))
        pushed = max(pushed, reached)
        self._fold_silently(self._training, pushed)
        if refused > pushed:
            logger.warning("%s: examples %d to %d were refused and are skipped", model, pushed, refused)
            self._training.upto = refused
        if refused > pushed or sequence < 0:
            self._new_base(live)
            return
        self._push = Push(self._deltas, model, live, sequence)
        self._based_at, self._since = upto, []
        logger.info("%s: continuing base %s from example %d", model, live, self._training.upto)

    def _fold_silently(self, training: Training, upto: int) -> None:
        """Fold what an earlier life counted and pushed. The slots stay pending, so the next delta carries them too; the
        gate looks on, so a restart does not blind it."""
        while training.upto < upto and (folded := training.step(min(10_000, upto - training.upto))) is not None:
            self._gate.observe(folded.predicted, folded.batch.labels)

    def _last_delta(self, base: str, at: int) -> tuple[int, int]:
        """Sequence of the last delta on `base` in the log, and the example before which it ends; zeros for none, and
        -1 when the log cannot be read: then servers get no delta past the damage either, and need a new base."""
        reader, last = self._log.reader("deltas"), (0, 0)
        try:
            for delta in (decode(record.value) for record in reader.records(0, at)):
                if isinstance(delta, Delta) and (delta.model, delta.base) == (self._settings.model, base):
                    last = max(last, (delta.sequence, delta.upto))
        except Corrupt as error:
            logger.error(
                "%s: deltas of base %s are damaged, so a new base is put: %s", self._settings.model, base, error
            )
            return -1, last[1]
        return last

    def _push_delta(self, training: Training, push: Push) -> bool:
        """Whether the gate let it pass."""
        slots, weights = training.learner.delta()
        why = self._gate.refuses(weights)
        if why:
            self._freeze(why)
            return False
        push.push(slots, weights, self._since, training.upto)
        self._since = []
        self._pushed_at = self._clock.monotonic()
        self._pushes.add()
        self._log.commit(self._group, "examples", {0: training.upto})
        return True

    def _freeze(self, why: str) -> None:
        """Stop learning where it is, in the place where a person and every process see it: the policy."""
        assert self._training is not None
        self._refused.add()
        self._log.commit(self._group, "refused", {0: self._training.upto})
        logger.error("%s: a push was refused and learning is paused: %s", self._settings.model, why)
        self._repository.change_policy(
            self._settings.model,
            lambda policy: msgspec.structs.replace(policy, learning="paused"),
            who=MADE_BY,
            why=f"gate: {why}",
        )
        self._training = self._push = None
        self._gate = Gate(self._settings.gate)

    def _new_base(self, parent: str) -> None:
        """Put the learner's whole state as a version and make it live in place of `parent`, which it continues."""
        assert self._training is not None
        training, model = self._training, self._settings.model
        training.learner.delta()  # the base holds these slots already
        lineage: dict[str, object] = {
            "made_by": MADE_BY,
            "parent": parent,
            "upto": training.upto,
            "deltas_from": self._deltas.end,
        }
        manifest = msgspec.structs.replace(self._repository.manifest(model, parent), lineage=lineage)
        base = self._repository.put(model, manifest, {manifest.file: training.learner.dump()})

        def continue_from(now: Policy) -> Policy:
            if now.live not in (parent, base):  # without a policy file the newest version is live by itself
                raise Conflict(f"{model}: {now.live} went live while base {base} of {parent} was put")
            return msgspec.structs.replace(now, live=base)

        try:
            self._repository.change_policy(model, continue_from, who=MADE_BY, why=f"new base of {parent}")
        except Conflict as conflict:  # a person was faster: the next step follows them
            logger.warning("%s", conflict)
            self._training = self._push = None
            return
        self._push = Push(self._deltas, model, base, 0)
        self._based_at, self._since = training.upto, []
        self._pushes.add()
        self._log.commit(self._group, "bases", {0: int(base)})
        self._log.commit(self._group, "deltas", {0: int(str(lineage["deltas_from"]))})  # retention keeps what is needed
        self._log.commit(self._group, "examples", {0: training.upto})
        self._drop_old_bases()

    def _drop_old_bases(self) -> None:
        model = self._settings.model
        ours = [
            version
            for version in self._repository.versions(model)
            if self._repository.manifest(model, version).lineage.get("made_by") == MADE_BY
        ]
        in_use = self._repository.policy(model).named()
        for version in ours[: -self._settings.push.bases_kept]:
            if version not in in_use:
                self._repository.remove(model, version)

    @property
    def _group(self) -> str:
        return f"learn.{self._settings.model}"
