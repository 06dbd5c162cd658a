"""Trainings that end in the middle, as by a kill: through what they report to."""

from siren.train.loop import Log


class Killed(Exception):
    pass


def at(last: int) -> Log:
    """A log that ends the training when it reports this step, or one after it."""

    def log(step: int, metrics: dict[str, float]) -> None:
        if step >= last:
            raise Killed

    return log
