"""Many samples of one figure."""

import statistics


def spread(samples):
    """The smallest sample, the median and the largest."""
    return min(samples), statistics.median(samples), max(samples)


def quantile(samples, per_mille):
    """The value that this many thousandths of the samples do not exceed."""
    return sorted(samples)[min(len(samples) * per_mille // 1000, len(samples) - 1)]


def in_target(sample):
    """How long a detach took in the target, without the RPC server's polling interval, in us."""
    return sum(sample['steps_us'].values())
