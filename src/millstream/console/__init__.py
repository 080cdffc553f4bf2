"""The console: pages that show whether the system is well, and move it, in a browser without a build step.

Rules of the room:
- A page knows protocols alone (`views.py`, or one of its own): what it shows, it is handed as small structs by the
  application, which reads tails and keeps what it read, bounded. No page load scans the log.
- Reading runs in threads, never on the loop; what has not changed since is not drawn again.
- Item titles, log text and reasons are data. They reach the browser as text nodes (`ui.label`, `text()`), or through
  `chart.escaped` into a drawing: no other text is ever HTML.
- Who may: `sign.py`. Every reading and every action asks anew, so a revoked key ends an open page, too.
- An action is confirmed with a reason, and is written as who (the key's name) and why.
- Everything a browser loads comes from this process; a policy of content in its headers forbids the rest.
"""
