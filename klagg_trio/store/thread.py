"""Where the store's synchronous calls run: off the event loop, one at a time.

SQLite allows one call at a time on a connection. A single slot in a worker thread keeps to that
whoever calls, and lets calls wait in the order in which they were made.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

RunInThread = Callable[..., Awaitable[Any]]
"""Runs a synchronous function with its arguments, and returns what it returns."""


def one_thread() -> RunInThread:
    """Return a runner that gives each function a worker thread, one function at a time."""
    limiter = trio.CapacityLimiter(1)

    async def run_in_thread(function: Callable[..., Any], *args: object) -> Any:  # noqa: ANN401
        return await trio.to_thread.run_sync(function, *args, limiter=limiter)

    return run_in_thread


async def run_inline(function: Callable[..., Any], *args: object) -> Any:  # noqa: ANN401
    """Run the function here and now: a thread in flight would let an autojump clock jump."""
    await trio.lowlevel.checkpoint()
    return function(*args)
