"""What outlives a process: files written whole or not at all."""

from millstream.store.blob import digest, fsync_path, write_atomic

__all__ = ["digest", "fsync_path", "write_atomic"]
