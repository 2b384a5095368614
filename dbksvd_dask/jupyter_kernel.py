"""The Jupyter kernel that this process may be: whether it is one, and letting clicks in while a cell waits."""

import sys
import threading
from inspect import isawaitable
from typing import Any

_OF_WIDGETS = {"comm_open", "comm_msg", "comm_close", "comm_info_request"}


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel.

    Examples
    --------
    >>> in_notebook()
    False
    """
    return _kernel() is not None


async def answer_widgets() -> None:
    """Handle what widgets have sent while a cell runs; in the main thread.

    ipykernel 6 keeps all messages until the cell has ended; from 7.1 on this does nothing, as the kernel handles those
    of widgets by itself. The other messages, such as the next cells of "Run All", stay as they are and in their order.

    Examples
    --------
    >>> import asyncio
    >>> asyncio.run(answer_widgets())
    """
    kernel = _kernel()
    if not hasattr(kernel, "msg_queue") or threading.current_thread() is not threading.main_thread():
        return
    kernel.shell_stream.flush()  # from the socket to the queue
    for _ in range(kernel.msg_queue.qsize()):
        entry = *_, frames = kernel.msg_queue.get_nowait()
        if not (frames and _is_of_widget(kernel, frames)):
            kernel.msg_queue.put_nowait(entry)
            continue
        identities, parts = kernel.session.feed_identities(*frames, copy=False)
        message = kernel.session.deserialize(parts, copy=False)
        kernel._publish_status("busy", "shell", message)  # the front end holds its next message back until "idle"
        handled = kernel.shell_handlers[message["header"]["msg_type"]](kernel.shell_stream, identities, message)
        if isawaitable(handled):
            await handled
        kernel._publish_status("idle", "shell", message)


def _kernel() -> Any:
    base = sys.modules.get("ipykernel.kernelbase")
    return base.Kernel.instance() if base is not None and base.Kernel.initialized() else None


def _is_of_widget(kernel: Any, frames: Any) -> bool:
    """Looks at the header only: the session takes a message that is deserialised a second time for an attack."""
    _, (_, header, *_) = kernel.session.feed_identities(*frames, copy=False)
    return kernel.session.unpack(header.bytes)["msg_type"] in _OF_WIDGETS
