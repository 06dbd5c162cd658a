"""Which Host a local server answers to: what keeps other pages of a rater's browser out (DNS rebinding).

A page of an attacker can point a name of its own at this machine's address, and then asks the server with that name
as its Host. So a name is refused unless it is localhost or was allowed; addresses cannot be pointed elsewhere, which
leaves a phone in the same network its http://192.168.1.5:7861. What a page of another origin sends is refused as well.
"""

import ipaddress
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]
HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d+)?", re.ASCII)


class Hosts:
    """Middleware: 421 for a Host that was not allowed, 403 for a request of another origin."""

    def __init__(self, app: App, names: Sequence[str] = ()) -> None:
        self.app, self.allowed = app, {name.lower().rstrip(".") for name in names}
        self.names = {*self.allowed, "localhost"}

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket") and (refusal := self._refusal(scope)):
            status, reason = refusal
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008, "reason": reason})
            return await PlainTextResponse(reason + "\n", status)(scope, receive, send)
        return await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        sent = [(name, value.decode("latin-1")) for name, value in scope["headers"] if name in (b"host", b"origin")]
        hosts, origins = ([value for name, value in sent if name == key] for key in (b"host", b"origin"))
        if len(hosts) != 1 or not self._known(hosts[0]):
            shown = ", ".join(hosts) or "none"
            return 421, f"this server does not answer to the host {shown[:100]!r}; --allow-host NAME lets one in"
        own = {hosts[0].lower(), *self.allowed}  # a proxy may pass on another Host than the browser saw
        if origins and urlsplit(origins[0]).netloc.lower() not in own:  # "null", of a file or a frame, has none
            return 403, f"a page of the origin {origins[0][:100]!r} may not ask this server"
        return None

    def _known(self, host: str) -> bool:
        found = HOST.fullmatch(host)
        name = found["name"].strip("[]").lower().rstrip(".") if found else ""
        try:
            return name in self.names or bool(ipaddress.ip_address(name))
        except ValueError:
            return False
