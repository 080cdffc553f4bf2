"""What monitors need to know of an installation: the feature sets that it defines, and when their models were made."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from millstream.app.installation import Installation
from millstream.errors import Error
from millstream.watch.monitors.drift import Columns

logger = logging.getLogger("millstream")


def sets(at: Installation) -> dict[str, Columns]:
    """What each feature set reads; none where their file of definitions cannot be used, which is said."""
    try:
        defined = at.registry.sets.values()
    except Error as error:
        logger.error("what features are called is not known: %s", error)
        return {}
    found = {}
    for one in defined:
        texts = {feature.name for feature in one.features if feature.datatype == "UINT32"}
        tokens = {name for name in one.columns if name in texts or name.rpartition("_")[0] in texts}
        found[one.name] = Columns(one.hash, one.columns, frozenset(tokens))
    return found


def trained(at: Installation) -> Mapping[str, float]:
    """When the live version was made, unix seconds, by the hash of the feature set that it takes."""
    found: dict[str, float] = {}
    for model in at.repository.models():
        try:
            live = at.repository.policy(model).live
            taken = at.repository.manifest(model, live).features
            made = (at.repository.folder(model, live) / "model.toml").stat().st_mtime
            if at.settings.features is not None and at.ranker_set is not None and taken == at.definition.hash:
                taken = at.ranker_set.hash
        except (Error, OSError):  # it has no version, or one that cannot be read: others say so
            continue
        if taken:
            found[taken] = max(found.get(taken, 0.0), made)
    return found
