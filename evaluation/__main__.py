"""The command of earlier versions, for one release."""

import sys

sys.exit("python -m evaluation has become: python -m adaface evaluate (the options are the same)")
