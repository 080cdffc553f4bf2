"""The demo: the whole loop on real data, from one command."""
