"""What happens to words and their audio before they leave or are kept: what is personal is masked, and muted."""

from millstream.flows.speech.words.gate import Gate
from millstream.flows.speech.words.mute import droppable, mute

__all__ = ["Gate", "droppable", "mute"]
