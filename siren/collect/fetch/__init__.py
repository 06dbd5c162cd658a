"""How clips come over a network: one downloader, media out of archives and videos, licences by one name."""
