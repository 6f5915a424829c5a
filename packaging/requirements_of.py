"""The requirements of this project's extras, a line each: ``requirements_of.py EXTRA ...``.

To install them beside an editable installation that is there already. ``pip install -e .[EXTRA]``
would compile it again.
"""

from __future__ import annotations

import sys
from importlib.metadata import requires

from packaging.requirements import Requirement


def main() -> None:
    """Print those of the extras that are asked for, and of no other."""
    for line in requires("infer-os") or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            continue  # of every installation
        if any(marker.evaluate({"extra": extra}) for extra in sys.argv[1:]):
            requirement.marker = None
            print(requirement)


if __name__ == "__main__":
    main()
