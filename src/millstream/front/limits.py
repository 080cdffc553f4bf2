"""Bounds of the HTTP border: each declared once, with its bound, its default and its help."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


class SocketLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client of live speech can make a WebSocket hold, and for how long."""

    message_bytes_max: Annotated[
        Count, Meta(description="one message; over it the connection is closed with code 1009")
    ] = 1 << 20
    waiting_bytes_max: Annotated[
        Count, Meta(description="audio of one connection that its session has not taken, before reading stops")
    ] = 1 << 18
    unread_bytes_max: Annotated[
        Count, Meta(description="messages that a client has not read, before what may be left out is left out")
    ] = 1 << 16
    start_s: Annotated[Seconds, Meta(description="to say start")] = 10.0
    ping_s: Annotated[Seconds, Meta(description="silence of a client before it is pinged")] = 20.0
    pong_s: Annotated[Seconds, Meta(description="to answer that ping")] = 20.0
    origins: Annotated[
        tuple[str, ...], Meta(description="web pages that may listen, as https://app.example.org; of others none may")
    ] = ()


class HttpLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client can make this border hold, and for how long."""

    connections_max: Annotated[Count, Meta(description="open connections; one more gets a 503")] = 4096
    pipelined_max: Annotated[Count, Meta(description="requests of one connection that wait for answers")] = 32
    under_way_max: Annotated[
        Count, Meta(description="requests under way before a connection's next waits for its first; one always may")
    ] = 2048
    body_bytes_max: Annotated[Count, Meta(description="one request body, on the wire and unpacked; over it a 413")] = (
        64 << 20
    )
    held_bytes_max: Annotated[
        Count, Meta(description="bodies of all connections that came in pieces; over it a 503")
    ] = 512 << 20
    head_bytes_max: Annotated[
        Count, Meta(description="request line and headers, to within a read of 16 KiB; over it a 431")
    ] = 32 << 10
    headers_max: Annotated[Count, Meta(description="headers of one request; over it a 431")] = 64
    unsent_bytes_max: Annotated[Count, Meta(description="unread answers of one connection before reading stops")] = (
        1 << 20
    )
    unread_bytes_max: Annotated[
        Count, Meta(description="unread answers of all connections; over it who has not read for longest is cut off")
    ] = 512 << 20
    recording_bytes_max: Annotated[Count, Meta(description="one file to transcribe; over it a 413")] = 25 << 20
    recording_s_max: Annotated[Seconds, Meta(description="its sound at most; over it a 413")] = 4 * 3600.0
    outcomes_max: Annotated[Count, Meta(description="outcomes of one request")] = 10_000
    head_s: Annotated[Seconds, Meta(description="to send the headers of a request")] = 10.0
    body_s: Annotated[Seconds, Meta(description="to send a whole request")] = 60.0
    idle_s: Annotated[Seconds, Meta(description="an open connection may stay without a request")] = 75.0
    unread_s: Annotated[Seconds, Meta(description="a client may leave its answers unread")] = 30.0
    linger_s: Annotated[Seconds, Meta(description="a refused client may go on sending before it is cut off")] = 2.0
    drain_s: Annotated[Seconds, Meta(description="a stop waits for answers in flight")] = 30.0
    socket: SocketLimits = SocketLimits()
