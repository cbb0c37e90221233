"""The command of earlier versions, for one release."""

import sys

sys.exit("export_onnx.py has become: python -m adaface export (the options are the same)")
