"""What is served: versions on disk, the policy that says who gets which, and the runtimes that run them."""

from millstream.models.manifest import Batching, Manifest
from millstream.models.model import Learner, Model, load
from millstream.models.policy import Canary, Guard, Policy
from millstream.models.repository import Repository

__all__ = ["Batching", "Canary", "Guard", "Learner", "Manifest", "Model", "Policy", "Repository", "load"]
