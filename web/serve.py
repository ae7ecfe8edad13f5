"""Starts the page: nothing is fetched, nothing is told to anyone, and nothing stays when it ends."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.extras import install
from common.schema import one_line
from web.options import WebOptions

# What the page may load: itself. So whatever a library adds to it, no browser asks another machine.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob: ws: wss:; "
    "frame-ancestors 'self'"
)


class OnlyThisMachine:
    """ASGI middleware that sends ``POLICY`` with every answer.

    Args:
        app: what answers.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""

        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, with_policy)


def without_telemetry(work: Path) -> None:
    """Says to gradio, before it is imported, that it tells nobody anything, and where its files go.

    Raises:
        InputError: it is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise InputError(f"gradio is not installed, which the page needs: {install('demo')}")
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(work / "gradio"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


@dataclass
class Server:
    """The page, served.

    Attributes:
        address: to open in a browser.
        run: serves until ``stop`` or Ctrl-C.
        stop: ends it, from another thread.
    """

    address: str
    run: Callable[[], None]
    stop: Callable[[], None]


def make_server(options: WebOptions, work: Path) -> Server:
    """Opens all that the options name, for a page that is ready to be served.

    Args:
        options: what, and where.
        work: folder for the page's files.

    Raises:
        InputError: no gradio, a port that is taken, or see ``web.studio.open_studio``.
    """
    options.filled()  # refused before torch and gradio are imported
    without_telemetry(work)
    listening = _listen(options.host, options.port)
    try:
        app = _app(options, work)
    except BaseException:
        listening.close()
        raise
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3))
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{host}:{listening.getsockname()[1]}/"
    return Server(address, lambda: server.run([listening]), lambda: setattr(server, "should_exit", True))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        one = socket.socket(family, kind)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(place)
        one.listen()
    except (OSError, UnicodeError) as error:
        reason = one_line(getattr(error, "strerror", None) or error, 80)
        raise InputError(f"‹host› {one_line(host, 80)}, ‹port› {port}: cannot listen there ({reason})") from error
    return one


def _app(options: WebOptions, work: Path) -> Any:
    """What answers: gradio's page, whatever ``launch`` would look up, ask and share."""
    import fastapi
    import gradio as gr

    from web import look
    from web.page import build
    from web.studio import open_studio

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(OnlyThisMachine)
    return gr.mount_gradio_app(
        app,
        build(open_studio(options), work),
        path="/",
        server_name=options.host,
        server_port=options.port,
        footer_links=[],
        theme=look.theme(),
        css=look.CSS,
        head=look.HEAD,
        allowed_paths=[str(work)],
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,
        max_file_size="200mb",
    )


def serve(options: WebOptions) -> None:
    """Serves the page until Ctrl-C or SIGTERM; its files go with it."""
    # uvicorn ends on SIGTERM, then raises it again for the handler before its own: by default that ends all at once
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="tisynth_web_") as work:
        server = make_server(options, Path(work))
        print(f"{server.address}  (Ctrl-C ends it)", flush=True)
        server.run()
