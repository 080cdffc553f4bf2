"""Is it well: canaries that are judged by rules, shadows that are compared with what was answered.

Rules of the room:
- rules.py decides and touches nothing; guard.py reads and acts; shadow.py only looks.
- Nothing here is on the way of a request.
"""
