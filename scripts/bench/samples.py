"""Many samples of one figure."""

import statistics


def spread(samples):
    """The least, the middle and the greatest."""
    return min(samples), statistics.median(samples), max(samples)


def quantile(samples, per_mille):
    """What so many thousandths of the samples are below, or are."""
    return sorted(samples)[min(len(samples) * per_mille // 1000, len(samples) - 1)]
