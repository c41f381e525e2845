"""Many samples of one figure."""

import statistics


def spread(samples):
    """The least, the middle and the greatest."""
    return min(samples), statistics.median(samples), max(samples)
