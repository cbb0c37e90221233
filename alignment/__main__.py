"""``python -m alignment``: the command line is in ``align_command``."""

import sys

from adaface.commands.align import main

if __name__ == "__main__":
    sys.exit(main())
