"""``python -m tests.simulation``: simulate until so many events have happened.

A seed that breaks a promise is printed; ``--seed`` runs it again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter

from tests.simulation.simulator import World

#: Events of one run: short ones, so that many different settings come up.
RUN_STEPS = 20_000


def main() -> None:
    """Run the simulation."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000, help="events in all")
    parser.add_argument("--seed", type=int, help="run this seed only")
    arguments = parser.parse_args()
    first = arguments.seed if arguments.seed is not None else random.randrange(1 << 32)
    runs = 1 if arguments.seed is not None else -(-arguments.steps // RUN_STEPS)
    started, counts, steps = time.monotonic(), Counter[str](), 0
    for seed in range(first, first + runs):
        world = World(seed)
        try:
            world.run(RUN_STEPS)
        except BaseException:
            # Whatever it is, the seed must be known.
            sys.stdout.write(
                f"seed {seed} fails after {world.steps} events; run it again with\n"
                f"python -m tests.simulation --seed {seed}\n"
            )
            raise
        counts += world.counts
        steps += world.steps
    shown = ", ".join(f"{counts[key]} {key}" for key in sorted(counts))
    seconds = time.monotonic() - started
    sys.stdout.write(f"{steps} events in {seconds:.1f} s from seed {first}: {shown}\n")


if __name__ == "__main__":
    main()
