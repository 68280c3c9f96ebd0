"""Ports of the loopback interface for servers that a test starts, and may stop and start again."""

from __future__ import annotations

import contextlib
import secrets
import socket
from pathlib import Path
from typing import Final

__all__ = ["free_port", "free_ports"]

_LOWEST: Final = 15_000
_CLIENTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> list[int]:
    """Return free ports, all different, which nothing else takes before a server does, or while it is down.

    They are below those that the system gives to clients and to servers that ask for any port, if it leaves some.
    """
    end = int(_CLIENTS.read_text(encoding="ascii").split()[0]) if _CLIENTS.exists() else 0
    if end <= _LOWEST:
        end = 32_768
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            listener = stack.enter_context(socket.socket())
            # Not from the module random, which Hypothesis seeds alike in all workers.
            port = _LOWEST + secrets.randbelow(end - _LOWEST)
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", port))
                found.append(port)
        return found


def free_port() -> int:
    """Return one such port."""
    (port,) = free_ports(1)
    return port
