"""Who may see what: personal data leaves text before it is written, keys open verbs of models."""

from millstream.guard.auth import Keys
from millstream.guard.pii import Redacted, pseudonym, redact

__all__ = ["Keys", "Redacted", "pseudonym", "redact"]
