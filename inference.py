"""Use a model on faces: `python inference.py --help`; the code is in `adaface/inference` and `adaface/commands`."""

import sys

from adaface.system.interrupt import end_on_interrupt

if __name__ == "__main__":
    end_on_interrupt()
    from adaface.system.threads import limit_spinning

    limit_spinning()  # before PyTorch is imported

from adaface.system.imports import imported_for_good

with imported_for_good():
    from adaface.inference.embedder import Embedder as Embedder
    from adaface.inference.embedder import load_pretrained_model as load_pretrained_model
    from adaface.inference.embedder import to_input as to_input

if __name__ == "__main__":
    with imported_for_good():
        from adaface.commands.inference import main

    sys.exit(main())
