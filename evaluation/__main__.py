"""The command of earlier versions, for one release."""

import sys

print("python -m evaluation has become: python -m adaface evaluate (the options are the same)", file=sys.stderr)
sys.exit(2)
