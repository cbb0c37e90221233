"""The command of earlier versions, for one release."""

import sys

print("export_onnx.py has become: python -m adaface export (the options are the same)", file=sys.stderr)
sys.exit(2)
