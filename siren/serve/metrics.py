"""What the service counts, for Prometheus. Each service has a registry of its own."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
DECAY = 0.99  # per frame of the batch, of the real-time factor


class Metrics:
    def __init__(self) -> None:
        self.registry = made = CollectorRegistry()
        ProcessCollector(registry=made)  # memory and CPU time
        self.requests = Counter("siren_requests", "Requests by path and status.", ["path", "code"], registry=made)
        self.cancelled = Counter("siren_cancelled", "Clips whose listener went away.", registry=made)
        self.sound = Counter("siren_sound_seconds", "Seconds of sound made.", registry=made)
        self.busy = Counter("siren_busy_seconds", "Seconds in which sound was made.", registry=made)
        self.steps = Counter("siren_steps", "Frames of the batch.", registry=made)
        self.frames = Counter("siren_frames", "Frames of clips; over steps: mean clips at once.", registry=made)
        self.factor = Gauge("siren_realtime_factor", "Seconds of sound per second of work, lately.", registry=made)
        self.queue_seconds = Histogram("siren_queue_seconds", "Until a clip is begun.", buckets=SECONDS, registry=made)
        self.first_sound_seconds = Histogram(
            "siren_first_sound_seconds", "From request to first sound.", buckets=SECONDS, registry=made
        )
        self.request_seconds = Histogram(
            "siren_request_seconds", "From request to the last byte of sound.", buckets=SECONDS, registry=made
        )
        self._recent = 0.0, 0.0

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def worked(self, seconds: float, frames: int, sound: float) -> None:
        """One frame of a batch: how long it took, of how many clips, and how much sound it is."""
        self.busy.inc(seconds)
        self.steps.inc()
        self.frames.inc(frames)
        self.sound.inc(sound)
        self._recent = self._recent[0] * DECAY + sound, self._recent[1] * DECAY + seconds
        self.factor.set(self._recent[0] / self._recent[1])

    def text(self) -> bytes:
        return generate_latest(self.registry)
