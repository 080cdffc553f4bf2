"""Composition: builds each role from its settings, and hands rooms to each other as callables.

- `house.py`: the Door that every border calls.
- `service.py`: one process that answers: engine, Door, borders, gauges.
- `plain.py`: serve models alone, without a log; imports nothing of learning.
- `installation.py`: the settings and the folder that all roles of an installation share.
- `roles.py`: the roles `serve` and `learn`, and the one-off work of an operator (train, import).
- `lists.py`, `towers.py`, `shelves.py`, `shard.py`: what makes lists in a process, by which networks and vectors; what
  searches a share of the items for it; `tenants.py`: whose a request is; `batch.py`: lists for many at once.
- `init/`, `report/`: from tables to an installation, and from its log to a report.
"""
