"""Events in motion: the log, what stands in it, and the operators that read it."""

from millstream.stream.event import decode, encode
from millstream.stream.join import Join, JoinSettings
from millstream.stream.lenient import LenientReader
from millstream.stream.log import Log, LogLimits, Reader, Writer
from millstream.stream.operator import Operation
from millstream.stream.reader import Record
from millstream.stream.tasks import Task

__all__ = [
    "Join", "JoinSettings", "LenientReader", "Log", "LogLimits", "Operation", "Reader", "Record", "Task", "Writer",
    "decode", "encode",
]  # fmt: skip
