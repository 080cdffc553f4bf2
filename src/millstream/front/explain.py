"""Why an answer took so long, in one line that a person and a program can read.

Rules of the room:
- The text is a dictionary of structured fields (RFC 9651); its keys are the same over HTTP and gRPC.
- Nothing is measured for it: it says what the engine has measured anyway.
"""

from __future__ import annotations

from millstream.types import Output

HEADER = "Millstream-Explain"


def explain(output: Output) -> str:
    """`version` of the weights, `queue_us` waited, and of the call it was computed in: how many other requests
    (`mates`), `rows`, the share of `padding`, `copy_us` to join and `compute_us`; or that it was `cached`."""
    version = "".join(c if " " <= c <= "~" and c not in '"\\' else "?" for c in output.version)
    text = f'version="{version}", queue_us={output.queue_s * 1e6:.0f}'
    if output.cached:
        text += ", cached"
    ran = output.ran
    if ran is None:
        return text
    return (
        f"{text}, mates={ran.requests - 1}, rows={ran.rows}, padding={ran.padding:.2f}, "
        f"copy_us={ran.copy_s * 1e6:.0f}, compute_us={ran.compute_s * 1e6:.0f}"
    )
