"""The stack that tritonserver's threads get.

Server 2.51 parses JSON by recursion: 100 kB of nested brackets overrun the usual 8 MiB and end the process, whoever sent
them. Behind the proxy JSON ends at 256,000 bytes, half of which can be levels, at about 300 bytes of stack each.
"""

from __future__ import annotations

import resource

STACK_BYTES = 128 * 2**20
"""Address space for each thread, not memory: only what is touched is there. Three times what the deepest JSON needs."""


def deepen_stack() -> None:
    """Let the threads of this process's children have `STACK_BYTES`, or as much as is allowed."""
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    soft = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))
