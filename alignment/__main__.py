"""The command of earlier versions, for one release."""

import sys

print("python -m alignment has become: python -m adaface align (the options are the same)", file=sys.stderr)
sys.exit(2)
