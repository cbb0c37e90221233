"""The command of earlier versions, for one release."""

import sys

sys.exit("python -m alignment has become: python -m adaface align (the options are the same)")
