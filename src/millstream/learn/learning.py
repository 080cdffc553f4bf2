"""The learner of one model: follow the policy, fold examples, pass the gate, push.

A life of it: take the live version from the policy; if learning did not make it, start a base from it; fold what
`examples` holds beyond the base; then, at each step, fold, observe, and push when due. When it is killed it does the
same again and stands where it stood: everything it knows is the base plus the fold. What it had pushed already is
folded in silence then: it is neither counted twice nor pushed in pieces, so served weights never go back in time.

The policy file commands it. `learning = "paused"` or a `pin` stops folding where it is. When a person makes another
version live (a roll back), learning continues from that version, and from the *present* position: the examples that
the rolled back weights had learnt are not learnt again. So it is with what the gate refused: when a person lets it
run again, learning stands on the weights of the last push and goes on after the refused examples, or it would be
refused for them for ever. The gate judges what comes then by itself; a person's word makes new labels usual.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from millstream.clock import Clock
from millstream.errors import Conflict, Corrupt, Error, Misconfigured
from millstream.learn.gate import GateSettings
from millstream.learn.judge import AS_THEY_ARE, Judge, Task
from millstream.learn.push import Push, PushSettings
from millstream.learn.train import Folded, Training
from millstream.learn.validation import Slice, Validation, ValidationSettings
from millstream.meter import Meter
from millstream.models import online, traffic
from millstream.models.manifest import Manifest
from millstream.models.policy import LEARNER, Policy
from millstream.models.repository import Repository, Stamp
from millstream.stream.event import decode
from millstream.stream.log import Log, Writer
from millstream.types import Delta

MADE_BY = LEARNER
PUBLISH_S = 2.0  # between two reports of how learning does
logger = logging.getLogger("millstream.learn")


def group(model: str) -> str:
    """The consumer group in which the learner of a model says how far it is: topic `examples`, what is pushed; `bases`,
    the newest; `refused`, what the gate let nobody have."""
    return f"learn.{model}"


class LearnSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What learns, and how it reaches the servers."""

    model: Annotated[str, msgspec.Meta(description="the model that learns; empty: nothing learns")] = ""
    task: Annotated[
        str, msgspec.Meta(description="the task of [join.tasks] that it learns; empty: the only or first one")
    ] = ""
    calibrate: Annotated[
        bool, msgspec.Meta(description="served probabilities are scaled to be honest (Platt); their order stays")
    ] = True
    push: PushSettings = PushSettings()
    gate: GateSettings = GateSettings()
    validate: ValidationSettings = ValidationSettings()


class Learning:
    """One model's learner. `step()` does what is due and says how many examples it learnt."""

    def __init__(
        self,
        settings: LearnSettings,
        repository: Repository,
        log: Log,
        deltas: Writer,
        clock: Clock,
        meter: Meter,
        *,
        task: Task = AS_THEY_ARE,
        slices: Sequence[Slice] = (),
        folder: Path | None = None,
        also: str = "",
    ) -> None:
        """`task`: what its labels are; `slices`: rows that are judged apart; `folder`: where it says how it does;
        `also`: another model whose examples it learns too."""
        self._settings, self._repository, self._log, self._clock = settings, repository, log, clock
        self._deltas, self._task, self._also = deltas, task.name, also
        books = Validation(settings.validate, slices)
        file = folder / settings.model if folder is not None and settings.model else None
        self._judge = Judge(settings.gate, books, settings.calibrate, task, meter, file)
        self._suspended: Training | None = None
        self._training: Training | None = None
        self._push: Push | None = None
        self._pushed_at = self._suspended_at = clock.monotonic()
        self._published_at, self._judged = float("-inf"), 0
        self._unsaid = False
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
        learnt = self._step()
        if self._unsaid and self._clock.monotonic() - self._published_at >= PUBLISH_S:
            self._published_at, self._unsaid = self._clock.monotonic(), False
            self._judge.publish(self._judged, self._clock.now())
        return learnt

    def _step(self) -> int:
        now = self._policy_now()
        if (policy := _lets_learn(now)) is None:
            self._look_again(now)
            return 0
        self._suspended = None
        if self._push is None or self._push.base != policy.live:
            self._follow(policy)
        if self._training is None or self._push is None:  # nothing to learn on, or the policy has changed meanwhile
            return 0
        judged = self._judge.judged_upto  # books begin there, and with a fold
        folded = self._training.step(until=judged) if self._training.upto < judged else None
        folded = folded or self._training.step()
        if folded is not None:
            self._observe(folded)
            self._judged, self._unsaid = self._training.upto, True
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
        return _lets_learn(self._policy_now())

    def _policy_now(self) -> Policy | None:
        """None where there is no model, and while the file cannot be used: a slip of the pen stops learning, not the
        role, and is said once."""
        if not self._settings.model or self._settings.model not in self._repository.models():
            return None
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
        self._judge.observe(folded)
        self._since += folded.batch.since.tolist()
        self._waited.observe_all(folded.batch.waited)
        self._learnt.add(len(folded.batch.labels))
        self._skipped.add(folded.skipped)

    def _follow(self, policy: Policy) -> None:
        """Stand on the live version; if learning did not make it, put a base that starts from it."""
        model, live = self._settings.model, policy.live
        if (manifest := self._stand(live)) is None or self._training is None:
            return
        upto = self._training.upto
        newest = self._log.committed(self._group, "bases").get(0, 0)
        pushed = self._log.committed(self._group, "examples").get(0, 0)
        refused = self._log.committed(self._group, "refused").get(0, 0)
        if manifest.lineage.get("made_by") != MADE_BY or int(live) < newest:  # somebody's own version, or a roll back
            self._training.upto = max(upto, pushed, refused)
            self._judge.gate.go_on(by_person=refused > pushed and policy.who != MADE_BY)
            self._new_base(live)
            return
        sequence, reached = self._last_delta(live, int(str(manifest.lineage["deltas_from"])))
        pushed = max(pushed, reached)
        self._fold_silently(self._training, pushed)
        if refused > pushed:
            logger.warning("%s: examples %d to %d were refused and are skipped", model, pushed, refused)
            self._training.upto = refused
            self._judge.gate.go_on(by_person=policy.who != MADE_BY)
        if refused > pushed or sequence < 0:
            self._new_base(live)
            return
        self._push = Push(self._deltas, model, live, sequence)
        self._based_at, self._since = upto, []
        logger.info("%s: continuing base %s from example %d", model, live, self._training.upto)

    def _stand(self, live: str) -> Manifest | None:
        """Load a version as what learns, at the place in `examples` that it says; None when it cannot be."""
        model = self._settings.model
        stamp = self._repository.stamp(model), self._repository.stamp(model, live)
        if stamp == self._unusable:  # reading it all again would say the same
            return None
        try:
            manifest = self._repository.verify(model, live)
            learner, metadata = online.load(self._repository.folder(model, live) / manifest.file)
            parent = str(manifest.lineage.get("parent", ""))
            frozen = self._beside(str(manifest.lineage.get("frozen", live)))
            self._judge.stand(metadata, frozen, self._beside(parent) if parent else None)
        except Error as error:
            self._unusable = stamp
            self._wait(error)
            return None
        self._problem = ""
        upto = int(str(manifest.lineage.get("upto", 0)))
        examples = self._log.reader("examples")
        self._training = Training(learner, model, manifest.features, examples, upto, self._task, self._also)
        return manifest

    def _beside(self, version: str) -> online.Served | None:
        """A version that scores beside the learner; None for one that is gone."""
        model = self._settings.model
        try:
            manifest = self._repository.manifest(model, version)
            return online.load_served(self._repository.folder(model, version) / manifest.file)
        except (Error, OSError):
            return None

    def _fold_silently(self, training: Training, upto: int) -> None:
        """Fold what an earlier life counted and pushed. The slots stay pending, so the next delta carries them too; the
        judge looks on, so a restart does not blind it. What its books have already ends with a fold."""
        for until in (min(upto, self._judge.judged_upto), upto):
            while training.upto < until and (folded := training.step(until=until)) is not None:
                self._judge.observe(folded)

    def _look_again(self, policy: Policy | None) -> None:
        """After a refusal, answer what comes without learning it, and resume once a window of it is as usual."""
        gate = self._settings.gate
        if policy is None or not gate.resume_s or not policy.gate_paused or (policy.pin and not policy.gate_pinned):
            self._suspended = None
            return
        if self._suspended is None:
            self._suspend(policy.live)
        elif (folded := self._suspended.step(learn=False)) is not None:
            self._judge.look(folded)
            if self._clock.monotonic() - self._suspended_at >= gate.resume_s:
                self._resume(self._suspended.upto, policy.paused_why or policy.why)

    def _suspend(self, live: str) -> None:
        """Stand on the weights of the last push, before the examples that come after what was refused."""
        if (manifest := self._stand(live)) is None or self._training is None:
            return
        _, reached = self._last_delta(live, int(str(manifest.lineage.get("deltas_from", 0))))
        self._fold_silently(self._training, reached)
        self._suspended, self._training = self._training, None
        self._suspended.upto = max(self._suspended.upto, self._log.committed(self._group, "refused").get(0, 0))
        self._suspended_at = self._clock.monotonic()
        self._judge.gate.look_anew()

    def _resume(self, upto: int, refused: str) -> None:
        """Go on after example `upto`, if those before it were as usual; `refused`: why others were not."""
        if not self._judge.gate.as_usual(refused):
            return
        self._log.commit(self._group, "refused", {0: upto})
        why = f"gate: the last {self._settings.gate.window} examples are as usual again"
        self._suspended = None
        try:
            self._repository.change_policy(self._settings.model, _goes_on, who=MADE_BY, why=why)
        except Conflict as conflict:  # a person was faster: the next step follows them
            logger.warning("%s", conflict)
            return
        logger.warning("%s: learning resumes: %s", self._settings.model, why)

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
        change = training.learner.delta()
        why = self._judge.gate.refuses(change.values())
        if why:
            self._freeze(why)
            return False
        mended = self._judge.correction()
        push.push(change, self._since, training.upto, (mended.slope, mended.intercept))
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
        self._repository.change_policy(self._settings.model, self._stopped, who=MADE_BY, why=f"gate: {why}")
        self._training = self._push = None

    def _stopped(self, policy: Policy) -> Policy:
        """The policy after a refusal: nothing is learnt, and by the rule the base before the live one is served."""
        model, policy = self._settings.model, traffic.learning("paused")(policy)
        before = str(self._repository.manifest(model, policy.live).lineage.get("parent", ""))
        if self._settings.gate.then == "freeze" or before not in self._repository.versions(model):
            return policy
        return traffic.roll_back(before)(policy)

    def _new_base(self, parent: str) -> None:
        """Put the learner's whole state as a version and make it live in place of `parent`, which it continues."""
        assert self._training is not None
        training, model = self._training, self._settings.model
        training.learner.delta()  # the base holds these slots already
        before = self._repository.manifest(model, parent)
        frozen = before.lineage.get("frozen", parent) if before.lineage.get("made_by") == MADE_BY else parent
        lineage: dict[str, object] = {
            "made_by": MADE_BY,
            "parent": parent,
            "frozen": frozen,
            "upto": training.upto,
            "deltas_from": self._deltas.end,
        }
        manifest = msgspec.structs.replace(before, lineage=lineage)
        base = self._repository.put(model, manifest, {manifest.file: training.learner.dump(self._judge.metadata())})

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
        return group(self._settings.model)


def _lets_learn(policy: Policy | None) -> Policy | None:
    """The policy, where it lets the model learn."""
    if policy is None or policy.learning == "paused" or policy.pin or not policy.live:
        return None
    return policy


def _goes_on(policy: Policy) -> Policy:
    """Learning runs again, where it was the gate that stopped it. Else Conflict."""
    if not policy.gate_paused:
        raise Conflict(f"learning is no more paused by its gate, but by {policy.paused_by or 'somebody'}")
    return traffic.learning("run")(policy)
