"""Live speech: who said what, while they say it, corrected when it is known better."""
