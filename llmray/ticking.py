"""Something called now and then, from a thread, for the length of a block: progress that is told while others work."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def ticking(call: Callable[[], None], *, every_s: float, name: str) -> Iterator[None]:
    """Call `call` every so many seconds until the block ends; once it has ended, no call is under way.

    Args:
        name: of the thread, for whoever looks at stacks.
    """
    over = threading.Event()

    def tick() -> None:
        while not over.wait(every_s):
            call()

    thread = threading.Thread(target=tick, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
