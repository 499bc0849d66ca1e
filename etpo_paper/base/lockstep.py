"""Functions that run one at a time and whose requests are answered together.

Each run of a group is written as if it were alone: it draws a batch, learns from it, and so on. `Lockstep` gives each
a thread, but lets only one of them go on at any moment: until it asks for something, for instance a pass of the model
over its tokens. When all have asked or ended, all requests are answered at once, and the first goes on. A function that
waits for something outside, as for the executor, asks for a future; the others go on until that is done.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Ask = Callable[[Request | Future[Any]], Answer]


class Stopped(BaseException):
    """Raised in a function that is not to go on, because the others were interrupted."""


class Lockstep(Generic[Request, Answer]):
    """Runs functions whose requests are answered together.

    Args:
        answer: takes the requests of all functions that have not ended, in their order, and returns as many answers.
    """

    def __init__(self, answer: Callable[[list[Request]], Sequence[Answer]]):
        self._answer = answer

    def run(self, functions: Sequence[Callable[[Ask[Request, Answer]], None]]) -> list[Exception | None]:
        """Calls each function with another one, `ask`, that takes a request and returns its answer.

        The request may be a future. It is answered with its result, or raises its exception, when it is done.

        Returns:
            For each function the exception that ended it, or None. An exception of one does not disturb the others.

        Raises:
            BaseException: whatever `answer` raises, and what is no Exception, such as KeyboardInterrupt; the functions
                are stopped first, each at the next request that it makes.
        """
        members = [_Member(function) for function in functions]
        try:
            asking = [m for m in members if m.begin()]
            while asking:
                futures = {m: m.request for m in asking if isinstance(m.request, Future)}
                requests = {m: m.request for m in asking if not isinstance(m.request, Future)}
                if not requests:
                    wait(futures.values(), return_when=FIRST_COMPLETED)
                ended = {m for m, future in futures.items() if future.done() and not m.go_on(None)}
                # What a member asks for when its future is done is answered the next time, with the others' requests.
                answers = self._answer(list(requests.values())) if requests else []
                ended |= {m for m, given in zip(requests, answers, strict=True) if not m.go_on(given)}
                asking = [m for m in asking if m not in ended]
        except BaseException:
            for member in members:
                member.stop()
            raise
        return [m.error for m in members if m.error is None or isinstance(m.error, Exception)]


class _Member(Generic[Request, Answer]):
    """One function in a thread of its own."""

    request: Request | Future[Any]

    def __init__(self, function: Callable[[Ask[Request, Answer]], None]):
        self.error: BaseException | None = None
        self._function = function
        self._answers: queue.SimpleQueue[Answer | Stopped | None] = queue.SimpleQueue()
        self._pauses: queue.SimpleQueue[bool] = queue.SimpleQueue()  # whether it has asked; False when it has ended
        self._thread = threading.Thread(target=self._work)

    def begin(self) -> bool:
        """Runs the function up to its first request; whether there is one."""
        self._thread.start()
        return self._asks()

    def go_on(self, answer: Answer | None) -> bool:
        """Runs the function up to its next request; whether there is one. A future needs no answer."""
        self._answers.put(answer)
        return self._asks()

    def _asks(self) -> bool:
        asks = self._pauses.get()
        if self.error is not None and not isinstance(self.error, Exception):
            raise self.error
        return asks

    def stop(self) -> None:
        """Ends the function at its next request, or where it waits for an answer, and waits until it has ended."""
        self._answers.put(Stopped())
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        try:
            self._function(self._ask)
        except Stopped:
            pass
        except BaseException as error:
            self.error = error
        self._pauses.put(False)

    def _ask(self, request: Request | Future[Any]) -> Any:
        self.request = request
        self._pauses.put(True)
        answer = self._answers.get()
        if isinstance(answer, Stopped):
            raise answer
        return request.result() if isinstance(request, Future) else answer
