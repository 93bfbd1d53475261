"""Reference files: which paths may be read, and which addresses may be fetched."""

import http.client
import ipaddress
import mimetypes
import socket
import ssl
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from opensora.datasets.video_io import is_image, is_video
from opensora.engine.guides import Guide, Sentence
from opensora.engine.prompt_files import is_url
from opensora.layers.known_frames import shorten

_REDIRECTS = 3
_BLOCK = 1 << 16


class ReferenceFiles:
    """Turn what guides name into files that may be read.

    Args:
        rules: `references` of `configs/_base_/inference.py`: `folders`, `urls`, `hosts`, `megabytes`,
            `seconds`.
        folder: Where fetched files go.
    """

    def __init__(self, rules: Mapping[str, Any], folder: Path) -> None:
        self.rules, self.folder = rules, folder
        self._fetched: dict[str, str] = {}

    def localize(self, guide: Guide) -> Guide:
        """Replace the paths and addresses of a guide by files.

        Raises:
            ValueError: A path is outside of the folders, an address is refused, or it is no image or video.
            FileNotFoundError: There is no such file.
        """
        entries = tuple(
            replace(entry, path=self.find(entry.path))
            if isinstance(entry, Sentence) and not entry.names_number
            else entry
            for entry in guide.entries
        )
        return replace(guide, references=tuple(map(self.find, guide.references)), entries=entries)

    def find(self, text: str) -> str:
        """Return the file that a path or an address names. Errors as of `localize`."""
        if is_url(text):
            if not self.rules["urls"]:
                raise ValueError(
                    f"reference {shorten(text)}: not fetched; get the file, or --references.urls True."
                )
            if text not in self._fetched:
                self._fetched[text] = str(self._fetch(text))
            return self._fetched[text]
        try:
            path = Path(text).resolve()
            there = path.is_file()
        except (OSError, RuntimeError, ValueError) as error:  # too long, links in a circle, a null character
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"reference {shorten(text)}: no path of a file ({reason}).") from None
        folders = self.rules["folders"]
        if folders is not None and not any(path.is_relative_to(Path(f).resolve()) for f in folders):
            raise ValueError(f"reference {shorten(text)}: outside of references.folders={list(folders)}.")
        if not there:
            raise FileNotFoundError(f"reference {shorten(text)}: no such file.")
        if not is_image(str(path)) and not is_video(str(path)):
            raise ValueError(f"reference {shorten(text)}: by its name neither an image nor a video.")
        return str(path)

    def _fetch(self, url: str) -> Path:
        """Fetch an address within the limits; redirects pass the same checks."""
        deadline = time.monotonic() + self.rules["seconds"]
        at = url
        for _ in range(_REDIRECTS + 1):
            connection, target = self._connect(at, url)
            try:
                connection.request(
                    "GET", target, headers={"User-Agent": "opensora", "Accept": "image/*, video/*"}
                )
                answer = connection.getresponse()
                if answer.status in (301, 302, 303, 307, 308):
                    at = urllib.parse.urljoin(at, answer.getheader("Location") or "")
                    continue
                if answer.status != 200:
                    raise ValueError(
                        f"reference {url!r}: the server answers {answer.status} {answer.reason}."
                    )
                return self._receive(answer, url, at, deadline)
            except (OSError, http.client.HTTPException) as error:
                raise ValueError(f"reference {url!r}: {error or type(error).__name__}.") from None
            finally:
                connection.close()
        raise ValueError(f"reference {url!r}: more than {_REDIRECTS} redirects.")

    def _connect(self, at: str, url: str) -> tuple[http.client.HTTPConnection, str]:
        """Open a connection to a checked address of the host; the host is not looked up again."""
        try:
            parts = urllib.parse.urlsplit(at)
            host, secure = parts.hostname or "", parts.scheme == "https"
            port = parts.port or (443 if secure else 80)
        except ValueError:
            raise ValueError(f"reference {url!r}: {at!r} is no address.") from None
        if not is_url(at) or parts.username is not None:
            raise ValueError(
                f"reference {url!r}: leads to {at!r}; only http and https without a user's name."
            )
        hosts = self.rules["hosts"]
        if hosts and host not in hosts:
            raise ValueError(f"reference {url!r}: {host!r} is not one of references.hosts={list(hosts)}.")
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise ValueError(f"reference {url!r}: {host!r} is not found ({error}).") from None
        address = found[0][4][0]
        if host not in hosts and not all(_is_public(entry[4][0]) for entry in found):
            raise ValueError(
                f"reference {url!r}: {host!r} is a private address ({address}); add it to "
                "references.hosts if it may be read."
            )
        seconds = self.rules["seconds"]
        connection = http.client.HTTPConnection(host, port, timeout=seconds)
        try:
            plain = socket.create_connection((address, port), timeout=seconds)
            context = ssl.create_default_context()
            connection.sock = context.wrap_socket(plain, server_hostname=host) if secure else plain
        except OSError as error:
            raise ValueError(f"reference {url!r}: no connection to {host!r} ({error}).") from None
        target = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        query = urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
        return connection, f"{target}?{query}" if query else target

    def _receive(self, answer: http.client.HTTPResponse, url: str, at: str, deadline: float) -> Path:
        kind = (answer.getheader("Content-Type") or "").partition(";")[0].strip().lower()
        suffix = Path(urllib.parse.urlsplit(at).path).suffix.lower()
        if not (is_image(f"x{suffix}") or is_video(f"x{suffix}")):
            suffix = mimetypes.guess_extension(kind) or ""
        fits = is_image(f"x{suffix}") if kind.startswith("image/") else is_video(f"x{suffix}")
        if not fits or not kind.startswith(("image/", "video/")):
            raise ValueError(
                f"reference {url!r}: it is {kind or 'of no type'}; expected an image or a video."
            )
        most = int(self.rules["megabytes"] * 1e6)
        path = self.folder / f"reference{len(self._fetched)}{suffix}"
        size = 0
        with open(path, "wb") as file:
            while block := answer.read1(_BLOCK):
                size += len(block)
                if size > most:
                    raise ValueError(f"reference {url!r}: more than references.megabytes={most / 1e6:g}.")
                if time.monotonic() > deadline:
                    raise ValueError(f"reference {url!r}: not here within {self.rules['seconds']} seconds.")
                file.write(block)
        return path


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None) or parsed
    return mapped.is_global and not mapped.is_multicast
