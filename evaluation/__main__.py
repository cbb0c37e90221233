"""``python -m evaluation``: the command line is in ``evaluate_command``."""

import sys

from adaface.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
