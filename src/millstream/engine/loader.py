"""Where versions are loaded: a thread each, so many at a time, and none that keeps a process from ending."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from millstream import errors

T = TypeVar("T")


class Loader(Generic[T]):
    """Runs `count` calls at a time, the others in order behind them."""

    def __init__(self, count: int) -> None:
        self._room = asyncio.Semaphore(count)

    async def run(self, label: str, call: Callable[[], T]) -> T:
        """What `call` gives or raises. A call that would end its program (sys.exit): Misconfigured. Cancelled, it goes
        on by itself and nobody hears of it."""
        async with self._room:
            loop = asyncio.get_running_loop()
            done: asyncio.Future[T] = loop.create_future()

            def settle(result: T | None, error: Exception | None) -> None:
                if done.done():
                    return
                if error is not None:
                    done.set_exception(error)
                else:
                    done.set_result(result)  # type: ignore[arg-type]  # whatever `call` gave, None too

            def work() -> None:
                result, problem = None, None
                try:
                    result = call()
                except Exception as error:
                    problem = error
                except BaseException as error:
                    problem = errors.Misconfigured(f"{label} raises {error!r} while it loads")
                with suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
                    loop.call_soon_threadsafe(settle, result, problem)

            threading.Thread(target=work, name=f"millstream-load-{label}", daemon=True).start()
            return await done
