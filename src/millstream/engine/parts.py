"""What chains ask of other models: a request from one of their threads, answered on the loop like any other."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Mapping

from millstream import errors
from millstream.engine.watch import Served
from millstream.models.chain import Chain, Faulty
from millstream.types import Output, Request


class Parts:
    """The way from chains' threads to `submit` on `loop`, also while a stop waits for what is under way."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        served: Mapping[str, Served],
        submit: Callable[[Request], asyncio.Future[Output]],
    ) -> None:
        self._loop, self._served, self._submit = loop, served, submit

    def ask(self, chain: str, request: Request) -> concurrent.futures.Future[Output]:
        """The future of the answer; may be called from any thread. Cancelling it gives the request up. Its errors are
        those of `submit`, and Faulty for a chain that would wait for itself."""
        done: concurrent.futures.Future[Output] = concurrent.futures.Future()

        def begin() -> None:
            try:
                self._check(chain, request.model)
                answer = self._submit(request)
            except Exception as error:
                if done.set_running_or_notify_cancel():
                    done.set_exception(error)
                return
            done.add_done_callback(lambda _: done.cancelled() and self._loop.call_soon_threadsafe(answer.cancel))
            answer.add_done_callback(lambda _: _pass_on(answer, done))

        self._loop.call_soon_threadsafe(begin)
        return done

    def _check(self, chain: str, part: str) -> None:
        """Refuse a chain that would wait for itself: Faulty. All its threads would, for ever."""
        seen, look = {part}, [part]
        while look:
            at = look.pop()
            if at == chain:
                raise Faulty(f"chain {chain} asks {part}, which asks {chain} again: it would never end")
            served = self._served.get(at)
            loaded = served.route.live.lane.loaded if served and served.route else None
            if isinstance(loaded, Chain):
                look += loaded.asked - seen
                seen |= loaded.asked


def _pass_on(answer: asyncio.Future[Output], done: concurrent.futures.Future[Output]) -> None:
    if not done.set_running_or_notify_cancel():
        return
    if answer.cancelled():
        done.set_exception(errors.Busy("the request was given up"))
    elif (error := answer.exception()) is not None:
        done.set_exception(error)
    else:
        done.set_result(answer.result())
