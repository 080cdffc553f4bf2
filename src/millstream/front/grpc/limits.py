"""Bounds of the gRPC border: each declared once, with its bound, its default and its help."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from millstream.front.limits import Count, Seconds


class GrpcLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client can make this border hold, and for how long."""

    connections_max: Annotated[Count, Meta(description="open connections; one more is closed at once")] = 4096
    streams_max: Annotated[Count, Meta(description="open calls of one connection; one more is refused")] = 1024
    message_bytes_max: Annotated[
        Count, Meta(description="one message, on the wire and unpacked; over it RESOURCE_EXHAUSTED")
    ] = 64 << 20
    held_bytes_max: Annotated[
        Count, Meta(description="messages in part and unsent answers of all connections; over it UNAVAILABLE")
    ] = 512 << 20
    unsent_bytes_max: Annotated[
        Count, Meta(description="answers of one connection that its windows do not let out; over it no more is begun")
    ] = 64 << 20
    buffer_bytes_max: Annotated[
        Count, Meta(description="answers in the socket's buffer of one connection before reading stops")
    ] = 1 << 20
    header_bytes_max: Annotated[
        Count, Meta(description="headers of one call, packed and as HTTP/2 counts them; over it RESOURCE_EXHAUSTED")
    ] = 32 << 10
    idle_frames_max: Annotated[
        Count, Meta(description="pings, settings, empty and other frames a second that ask for nothing")
    ] = 1000
    resets_max: Annotated[
        Count, Meta(description="calls a second that a client may give up, beyond as many as were answered")
    ] = 2000
    head_s: Annotated[
        Seconds, Meta(description="to begin a connection, to finish a frame, and the headers of a call")
    ] = 10.0
    message_s: Annotated[
        Seconds, Meta(description="to send the rest of a message, and from a call's begin to its message")
    ] = 60.0
    idle_s: Annotated[
        Seconds, Meta(description="an open connection may stay without a call, and a stream without its first message")
    ] = 600.0
    keepalive_s: Annotated[Seconds, Meta(description="silence of a client with open calls, before it is pinged")] = 60.0
    ping_s: Annotated[Seconds, Meta(description="to answer that ping")] = 20.0
    unread_s: Annotated[Seconds, Meta(description="a client may leave its answers unread")] = 30.0
    linger_s: Annotated[Seconds, Meta(description="a refused client may go on sending before it is cut off")] = 2.0
    drain_s: Annotated[Seconds, Meta(description="a stop waits for calls in flight")] = 30.0
