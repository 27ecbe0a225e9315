"""The reference's networks live beside the tests of the attacks, the tiny training beside those of training."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / room) for room in ("attacks", "training")]
