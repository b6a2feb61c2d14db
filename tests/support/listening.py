"""Servers whose connections a function of the test serves, each in a thread."""

import contextlib
import socket
import threading


@contextlib.contextmanager
def listening(serve, host="127.0.0.1"):
    """Yield the server's address. A connection ends when `serve` returns, or with an OSError."""
    with socket.create_server((host, 0), backlog=200) as listener:

        def answer(connection):
            with contextlib.suppress(OSError), connection:
                serve(connection)

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=answer, args=listener.accept()[:1], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield "{}:{}".format(*listener.getsockname())
        finally:
            listener.shutdown(socket.SHUT_RDWR)


def nowhere():
    """Return an address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        return "{}:{}".format(*gone.getsockname())
