"""Walls: headers and cuts that keep a page to its own server."""

import re
from collections.abc import Awaitable, Callable
from typing import Any

_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self'; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
# What Gradio's page fetches from other hosts: a script for frames, fonts, and pictures for search engines.
_OUTSIDE = re.compile(
    rb"<script[^>]*\bsrc=\"https?://[^>]*></script>|<link[^>]*\bhref=\"https?://[^>]*>"
    rb"|<meta[^>]*\bcontent=\s*\"https?://[^>]*>"
)
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Walls:
    """An ASGI application around another: pages lose what points outside, and browsers are told to stay.

    Args:
        app: The application.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start: dict[str, Any] = {}
        parts: list[bytes] = []

        async def watched(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], *_HEADERS]
                if not dict(headers).get(b"content-type", b"").startswith(b"text/html"):
                    await send({**message, "headers": headers})
                    return
                start.update(message, headers=[(k, v) for k, v in headers if k != b"content-length"])
            elif not start:
                await send(message)
            else:
                parts.append(message.get("body", b""))
                if not message.get("more_body"):
                    body = _OUTSIDE.sub(b"", b"".join(parts))
                    start["headers"].append((b"content-length", str(len(body)).encode()))
                    await send(start)
                    await send({**message, "body": body})

        await self.app(scope, receive, watched)


def walls() -> list[Any]:
    """Return the middleware for Gradio."""
    from starlette.middleware import Middleware

    return [Middleware(Walls)]
