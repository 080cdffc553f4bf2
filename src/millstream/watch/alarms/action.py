"""What a rule may do to a model, and how that is undone: changes of its policy, as a person would make them.

Rules of the room:
- An action is made on the policy as it is then, by the change that a person's command makes; who, why and the alert's
  id are recorded with it.
- What is done already, or is not possible, is said and left.
- Undoing restores the policy before, and only while nobody has changed it since.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from millstream.errors import Conflict, Error, NotFound
from millstream.models import traffic
from millstream.models.policy import Policy
from millstream.models.repository import Repository
from millstream.types import Alert
from millstream.watch.alarms.rule import Rule

WHO = "watch"


def act(repository: Repository, rule: Rule, alert: Alert) -> str:
    """Do what the rule says of the model that the alert names; what was done, in words. Raises no Error or OSError."""
    model = alert.labels.get("model") or rule.where.get("model", "")
    try:
        before = repository.policy(model)
        change, said = _CHANGES[rule.action](repository, model, before, alert.labels.get("version", ""))
        if rule.dry_run:
            return f"nothing, as the rule only says it (dry_run): {said}"
        after = repository.change_policy(
            model,
            traffic.only_on(before.version, model, change),
            who=f"{WHO}: {alert.rule}",
            why=f"{alert.said[:1500]} [{alert.id}]",  # undo knows it by its end
        )
    except (Error, OSError) as error:
        return f"nothing: {error}"
    return f"{said}, in policy {after.version} of {model}; `millstream watch undo {alert.id}` takes it back"


def undo(repository: Repository, alert: Alert, who: str, why: str) -> Policy:
    """Take back what was done by an alert; the policy after it. NotFound: nothing was done; Conflict: the policy was
    changed since."""
    mark = f"[{alert.id}]"
    for model in models_of(repository, alert):
        before: Policy | None = None
        for policy in repository.history(model):
            if policy.version == 1:  # there was none before it, which means the highest
                before = Policy(live=(repository.versions(model) or [policy.live])[-1])
            if policy.why.endswith(mark) and policy.who.startswith(f"{WHO}: ") and before is not None:
                past = before

                def restored(now: Policy, past: Policy = past) -> Policy:
                    return replace(past, version=now.version)

                change = traffic.only_on(policy.version, model, restored)
                said = why or f"undid what {policy.who} did {mark}"
                return repository.change_policy(model, change, who=who, why=said)
            before = policy
    raise NotFound(f"nothing was done by alert {alert.id}")


def models_of(repository: Repository, alert: Alert) -> list[str]:
    """The models that an alert may have acted on: the one that it names; any, where its rule alone knew which."""
    named, there = alert.labels.get("model", ""), repository.models()
    return [one for one in there if one == named or not named]


def _freeze(repository: Repository, model: str, policy: Policy, version: str) -> tuple[traffic.Change, str]:
    if policy.learning == "paused":
        raise Conflict(f"learning of {model} is paused already, by {policy.paused_by or 'somebody'}")
    return traffic.learning("paused"), f"paused learning of {model}"


def _stop_canary(repository: Repository, model: str, policy: Policy, version: str) -> tuple[traffic.Change, str]:
    if policy.canary is None:
        raise Conflict(f"{model} has no canary")
    version = version.partition("@")[0]
    if version and version != policy.canary.version:
        raise Conflict(f"version {version} of {model} is not its canary, {policy.canary.version} is")
    return lambda now: replace(now, canary=None), f"took back canary {policy.canary.version} of {model}"


def _roll_back(repository: Repository, model: str, policy: Policy, version: str) -> tuple[traffic.Change, str]:
    """Of the version that the alert names, if it does: a canary is taken back, and one that is not live is left."""
    version = version.partition("@")[0]
    if policy.canary is not None and version == policy.canary.version:
        return _stop_canary(repository, model, policy, version)
    if version and version != policy.live:
        raise Conflict(f"version {version} of {model} is not live, {policy.live} is")
    to = traffic.previous(repository, model, policy)
    return traffic.roll_back(to), f"rolled {model} back from {policy.live} to {to}"


_Made = Callable[[Repository, str, Policy, str], tuple[traffic.Change, str]]
_CHANGES: dict[str, _Made] = {"freeze": _freeze, "stop_canary": _stop_canary, "roll_back": _roll_back}
