"""The command of earlier versions: the code is in `adaface/commands/export.py`."""

import sys

from adaface.commands.export import main as main

if __name__ == "__main__":
    sys.exit(main())
