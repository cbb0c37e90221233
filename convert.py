"""Convert face data sets: `python convert.py --help`; the code is in `adaface/commands/convert.py`."""

import sys

from adaface.system.interrupt import end_on_interrupt

if __name__ == "__main__":
    end_on_interrupt()

from adaface.commands.convert import main as main

if __name__ == "__main__":
    sys.exit(main())
