"""Sound for other programs and for people: continuous batching, an HTTP service, and a page."""
