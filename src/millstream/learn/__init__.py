"""Close the loop: fold examples into weights, let a gate judge them, push them to the servers that answer."""

from millstream.learn.gate import Gate, GateSettings
from millstream.learn.learning import Learning, LearnSettings
from millstream.learn.push import Push, PushSettings
from millstream.learn.train import Training

__all__ = ["Gate", "GateSettings", "LearnSettings", "Learning", "Push", "PushSettings", "Training"]
