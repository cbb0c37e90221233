"""Convert face data sets: `python convert.py --help`; the code is in `adaface/commands/convert.py`."""

import sys

from adaface.system.interrupt import end_on_interrupt

if __name__ == "__main__":
    end_on_interrupt()
    from adaface.__main__ import main as run_command

    sys.exit(run_command(["convert", *sys.argv[1:]]))
else:
    from adaface.commands.convert import main as main
