"""Is it well: monitors that make readings, rules that make alarms of them, canaries judged, shadows compared,
experiments and reports.

Rules of the room:
- What decides touches nothing: rules, tests and estimates are functions of what was counted or logged. Who reads files
  and who acts stands beside them.
- Nothing here is on the way of a request: what serving adds is counters.
"""
