"""Freesound (Font et al., ACM MM 2013): sounds by their authors, each under its own licence, through the API.

Index: pages of the text search, followed by their `next`. The key comes from the environment and goes to the API's
host only. `quality: preview` is the OGG that the key alone gives; `original` needs an OAuth2 token, and its MD5 is
checked. Tags become labels: descriptions are seldom captions. The API allows 60 requests a minute, which is kept.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlencode, urlsplit

from siren.collect.fetch import tables
from siren.collect.fetch.download import Downloader
from siren.collect.fetch.media import File, Item, Row, rejected
from siren.config import parse, require

KEY = "FREESOUND_API_KEY"
FIELDS = "id,name,tags,license,username,md5,previews"


@dataclass(frozen=True)
class Options:
    api: str = "https://freesound.org/apiv2"
    query: str = ""
    filter: str = "duration:[2 TO 100]"  # in the API's own language
    quality: Literal["preview", "original"] = "preview"
    page_size: int = 150
    requests_per_minute: float = 60
    split: Literal["train", "val", "test"] = "train"


def items(options: dict[str, Any], downloader: Downloader) -> Iterator[Item | Row]:
    """Sounds in the order of the search. Raises `ConfigError` without a key."""
    settings = parse(Options, options, "collect.fetch.sources freesound")
    original = settings.quality == "original"
    variable, scheme = ("FREESOUND_ACCESS_TOKEN", "Bearer") if original else (KEY, "Token")
    key = os.environ.get(variable, "")
    require(
        bool(key),
        f"the source freesound needs a key in the environment variable {variable} (freesound.org/apiv2/apply)",
    )
    headers = {"Authorization": f"{scheme} {key}"}
    downloader.pace(settings.api, settings.requests_per_minute)
    search = {"query": settings.query, "filter": settings.filter, "fields": FIELDS, "sort": "created_asc"}
    page = f"{settings.api}/search/text/?{urlencode(search | {'page_size': settings.page_size})}"
    while page:
        require(
            urlsplit(page).netloc == urlsplit(settings.api).netloc,
            f"the API {settings.api} leads on to {page}; set collect.fetch.sources freesound.api to its own address",
        )
        found = json.loads(downloader.read(page, headers=headers))
        for sound in found["results"]:
            try:
                yield _item(sound, settings, headers if original else {})
            except (KeyError, TypeError, ValueError) as error:
                name = f"freesound-{sound.get('id', '?')}" if isinstance(sound, dict) else "freesound-?"
                yield rejected(name, "bad_row", f"the API's answer lacks something: {error!r}")
        page = found.get("next")


def _item(sound: dict[str, Any], settings: Options, headers: dict[str, str]) -> Item:
    name = f"freesound-{int(sound['id'])}"
    if settings.quality == "original":
        media = File(f"{settings.api}/sounds/{int(sound['id'])}/download/", f"md5:{sound['md5']}", headers)
    else:
        media = File(sound["previews"]["preview-hq-ogg"])
    labels = [str(tag) for tag in sound["tags"]] or [tables.described(sound["name"])]
    return Item(
        name,
        name.replace("-", ":"),
        settings.split,
        media,
        sound["license"],
        sound["username"],
        labels=labels,
        title=str(sound["name"]),
    )
