"""SoundBible: some 2,000 sound effects on web pages, each under the licence that its author chose.

Index: numbered list pages link (in headings) to a page for each sound, NUMBER-Title.html. That page has the
description in the first paragraph of #course-details, the words "License:" and "Recorded by", and links to WAV and MP3.
The first list page that names no new sound ends the list.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any, Literal
from urllib.parse import urljoin

from siren.collect.fetch.download import Downloader, FetchError, unavailable
from siren.collect.fetch.media import File, Item, Row, decode, rejected
from siren.config import parse

SOUND = re.compile(r"(?:^|/)(?P<id>\d+)-(?P<title>[^/]*)\.html$")
LICENCE = re.compile(r"Licen[sc]e\s*:\s*([^|\n]+)")
AUTHOR = re.compile(r"Recorded by\s*:?\s*([^|\n]+)")


@dataclass(frozen=True)
class Options:
    site: str = "https://soundbible.com"
    pages: str = "free-sound-effects-{page}.html"
    max_pages: int = 400
    split: Literal["train", "val", "test"] = "train"


class Page(HTMLParser):
    """Links, pieces of text (each on its own line), and paragraphs of the section #course-details."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.pieces: list[str] = []
        self.paragraphs: list[str] = []
        self._details = self._paragraph = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "a" and values.get("href"):
            self.links.append(values["href"] or "")
        self._details = self._details or values.get("id") == "course-details"
        if tag == "p" and self._details:
            self._paragraph = True
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        self._paragraph = self._paragraph and tag != "p"
        self._details = self._details and tag != "section"

    def handle_data(self, data: str) -> None:
        words = " ".join(data.split())
        if words:
            self.pieces.append(words)
            if self._paragraph:
                self.paragraphs[-1] = f"{self.paragraphs[-1]} {words}".strip()


def items(options: dict[str, Any], downloader: Downloader) -> Iterator[Item | Row]:
    """Sounds in the order of the list pages. A sound's page that cannot be had is quarantined."""
    settings = parse(Options, options, "collect.fetch.sources soundbible")
    seen: set[str] = set()
    for number in range(1, settings.max_pages + 1):
        page = urljoin(f"{settings.site}/", settings.pages.format(page=number))
        try:
            found = [SOUND.search(link) for link in Page(decode(downloader.fetch(page).read_bytes())).links]
        except FetchError as error:
            if error.reason == "not_found" and number > 1:
                return
            raise unavailable(f"the list {page}", error) from None
        new = {match["id"]: match.string for match in found if match and match["id"] not in seen}
        if not new:
            return
        seen |= set(new)
        for sound, link in new.items():
            url = urljoin(f"{settings.site}/", link)
            try:
                yield _item(sound, url, Page(decode(downloader.fetch(url).read_bytes())), settings)
            except FetchError as error:
                yield rejected(f"soundbible-{sound}", error.reason, error.detail)
            except ValueError as error:
                yield rejected(f"soundbible-{sound}", "bad_row", f"{url}: {error}")


def _item(sound: str, url: str, page: Page, settings: Options) -> Item:
    files = [link for end in ("wav", "mp3") for link in page.links if re.search(rf"(\.|type=){end}$", link)]
    if not files:
        raise ValueError("the page links to no sound")
    text = "\n".join(page.pieces)
    licence, author = LICENCE.search(text), AUTHOR.search(text)
    caption = next(filter(None, page.paragraphs), "")
    title = re.sub(r"[-\s]+", " ", SOUND.search(url)["title"]).strip()  # type: ignore[index]  # it was found by this
    return Item(
        f"soundbible-{sound}",
        f"soundbible:{sound}",
        settings.split,
        File(urljoin(url, files[0])),
        licence[1].strip() if licence else "unknown",
        author[1].strip() if author else None,
        [caption] if caption else [],
        [title] if title else [],
        title or None,
    )
