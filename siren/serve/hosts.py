"""Which Host a local server answers to: what keeps other pages of a user's browser out (DNS rebinding).

A page of an attacker can point a name of its own at this machine's address, and then asks the server with that name
as its Host. So a name is refused unless it is localhost, the name that the server was told to listen on, or was
allowed; addresses cannot be pointed elsewhere, which leaves a phone in the same network its http://192.168.1.5:7861.
What a page of another origin sends is refused as well. The service, its page and the listening test stand behind it.
Whoever started the server is told too, because a page may show its user no more than that something failed.
"""

import ipaddress
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse, Response

from siren.progress import notice

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]
HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d+)?", re.ASCII)
REMEDY = "ask it as localhost or by its address, or start it with --allow-host"
TOLD = 20  # different refusals that are told to whoever started the server


def names(host: str, allowed: Sequence[str] | None) -> list[str]:
    """What a server that listens on `host` answers to besides localhost and addresses.

    Raises ValueError for what is no name.
    """
    for name in allowed or ():
        if not HOST.fullmatch(name) or ":" in name.rpartition("]")[2]:
            raise ValueError(f"--allow-host is {name!r}; it takes a name such as sounds.example.org, without a port")
    return [*(allowed or ()), *([] if _address(host) else [host])]


def plain(status: int, error: str, remedy: str) -> Response:
    return PlainTextResponse(f"{error}; {remedy}\n", status)


class Hosts:
    """Middleware: 421 for a Host that was not allowed, 403 for a request of another origin; `refuse` words them."""

    def __init__(
        self, app: App, names: Sequence[str] = (), refuse: Callable[[int, str, str], Response] = plain
    ) -> None:
        self.app, self.refuse = app, refuse
        self.allowed = {_bare(name) for name in names}
        self.told: set[str] = set()

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket") and (refusal := self._refusal(scope)):
            self._tell(f"refused: {refusal[1]}; {refusal[2]}")
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008, "reason": refusal[1][:100]})
            return await self.refuse(*refusal)(scope, receive, send)
        return await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str, str] | None:
        """Status, what is wrong, and the remedy."""
        sent = [(name, value.decode("latin-1")) for name, value in scope["headers"] if name in (b"host", b"origin")]
        hosts, origins = ([value for name, value in sent if name == key] for key in (b"host", b"origin"))
        if len(hosts) != 1 or not self._known(hosts[0]):
            shown = ", ".join(hosts) or "none"
            return 421, f"this server does not answer to the host {shown[:100]!r}", f"{REMEDY} {_named(hosts)}"
        if origins and not self._own(origins[0], hosts[0]):
            error = f"a page of the origin {origins[0][:100]!r} may not ask this server"
            return 403, error, f"where that is this server behind a proxy, start it with --allow-host {_named(origins)}"
        return None

    def _known(self, host: str) -> bool:
        found = HOST.fullmatch(host)
        name = _bare(found["name"]) if found else ""
        return name in {*self.allowed, "localhost"} or _address(name)

    def _own(self, origin: str, host: str) -> bool:
        """Whether a page is of this server. A proxy may pass on another Host than the browser saw, at another port."""
        try:
            parts = urlsplit(origin)
            return parts.netloc.lower() == host.lower() or _bare(parts.hostname or "") in self.allowed
        except ValueError:  # such as http://[; and "null", of a file or a frame, has no host
            return False

    def _tell(self, text: str) -> None:
        if len(self.told) < TOLD and text not in self.told:
            self.told.add(text)
            notice(text)


def _bare(name: str) -> str:
    return name.strip("[]").lower().rstrip(".")


def _address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _named(sent: Sequence[str]) -> str:
    """What to allow so that this is let in; NAME where that cannot be told."""
    found = HOST.fullmatch(sent[0].rpartition("//")[2]) if len(sent) == 1 else None
    return found["name"][:100] if found else "NAME"
