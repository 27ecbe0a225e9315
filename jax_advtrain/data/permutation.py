"""Seeded permutations and numbers that are the same on every machine and with every version of numpy.

Per-sample state (margins) is stored in the order that these give, so a run resumed after an upgrade must get the same
ones. numpy guarantees the streams of its bit generators for ever, not those of `Generator.permutation` (NEP 19).
"""

import numpy as np

# One number a purpose, so that equal seeds never give two uses the same order.
SLOTS, EPOCH, VALIDATION, TEST, DIGITS, CROP = 1, 2, 3, 4, 5, 6


def permutation(count: int, purpose: int, seed: int, *more: int) -> np.ndarray:
    """A uniformly random order of 0..count-1, int64 (count,); a pure function of its arguments.

    Args:
      count: how many.
      purpose: one of the constants of this module.
      seed: in [0, 2**32).
      *more: further numbers in [0, 2**32) that tell orders apart (epoch, shard, class), always as many for one purpose.

    Raises:
      ValueError: a number outside [0, 2**32): SeedSequence would spell it as two words, which another seed spells too.
    """
    return np.argsort(_bits(count, purpose, seed, *more), kind="stable")


def uniforms(count: int, purpose: int, seed: int, *more: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 (count,); the arguments are those of `permutation`."""
    return (_bits(count, purpose, seed, *more) >> np.uint64(11)) * 2.0**-53


def _bits(count: int, purpose: int, seed: int, *more: int) -> np.ndarray:
    entropy = (purpose, seed, *more)
    if any(not 0 <= number < 2**32 for number in entropy):
        raise ValueError(f"seed must be in [0, 2**32), got {seed}" + (f" (with {more})" if more else ""))
    return np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(count)
