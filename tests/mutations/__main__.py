"""``python -m tests.mutations --count 20000 --seed 7`` runs a campaign and prints what it found."""

import argparse
import random
import sys

from tests.mutations.campaign import Campaign, smallest_of


def main() -> int:
    """Returns 1 if there are findings."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("--count", type=int, default=2_000, help="how many streams (2,000)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of the campaign (drawn)")
    parser.add_argument("--case", type=int, help="this one alone")
    parser.add_argument("--smallest", action="store_true", help="print the smallest stream of each group")
    given = parser.parse_args()
    numbers = range(given.count) if given.case is None else [given.case]
    report = Campaign(given.seed).run(numbers)
    print(report.table())  # noqa: T201
    if given.smallest or given.case is not None:
        for group in report.groups:
            print("", smallest_of(group, given.seed), sep="\n")  # noqa: T201
    return 1 if report.groups else 0


sys.exit(main())
