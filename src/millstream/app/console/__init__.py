"""The role `console`, composed: what its pages read of an installation and do to it, a file a page; following.py runs
it."""
