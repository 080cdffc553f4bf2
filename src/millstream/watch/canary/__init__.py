"""Guarded canaries: rules.py decides and touches nothing, guard.py reads and acts."""
