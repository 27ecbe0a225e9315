"""The command line that compares methods.

    python -m jax_advtrain.compare --config=configs/compare_digits.py
    python -m jax_advtrain.compare --help

Exit codes are those of jax_advtrain.main.
"""

import sys

from jax_advtrain import command_line, main
from jax_advtrain.studies.compared import compare_grid
from jax_advtrain.training.display import Display

MODES = {
    "compare": "train and evaluate what is not done yet, then write the table; started again it goes on",
    "table": "write the table only, of runs that are finished",
}
_USAGE = """Trains methods alike, attacks them alike, and writes one table and one figure.

  python -m jax_advtrain.compare --config=configs/compare_digits.py
  python -m jax_advtrain.compare --config=configs/compare_mnist.py --config.base.data.data_dir=DIR

Flags:
  --config=FILE         the grid; a name alone is looked for in those below
  --config.FIELD=VALUE  another value of one of its fields; those of the runs are base.FIELD
  --workdir=DIR         where the runs lie, each in <method>/seed-<n> (default runs/<grid name>)
  --mode=MODE           {modes}

Grids:
{shipped}
"""


def run(asked: command_line.Asked, display: Display) -> None:
    """What a command line asks for."""
    compare_grid(asked.config, asked.workdir, display, trains=asked.mode == "compare")


def compare(argv: list[str] | None = None) -> int:
    """Runs a command line (by default the process's) and returns the exit code."""
    return main.answered(lambda given: command_line.read_grid(given, MODES, _USAGE), run, argv)


if __name__ == "__main__":
    sys.exit(compare())
