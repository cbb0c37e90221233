"""Use a model on faces, under the official import path: `from inference import load_pretrained_model, to_input`.

`python inference.py` is the same as `adaface`. The code is in `adaface/inference/` and `adaface/commands/inference.py`.
"""

import sys

from adaface.system.interrupt import end_on_interrupt

if __name__ == "__main__":
    end_on_interrupt()
    from adaface.__main__ import main as run_command  # it checks the options before it imports PyTorch

    sys.exit(run_command(sys.argv[1:]))
else:
    from adaface.inference.embedder import Embedder as Embedder
    from adaface.inference.embedder import load_pretrained_model as load_pretrained_model
    from adaface.inference.embedder import to_input as to_input
