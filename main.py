r"""Train and evaluate a face recognition model: the command of training, whose code is in `commands/train.py`.

    python main.py --data_root <ROOT> --train_data_path faces_emore/imgs --val_data_path faces_emore \
        --gpus 2 --use_16bit --batch_size 512 --epochs 26 --lr_milestones 12,20,24 --arch ir_18 \
        --head adaface --m 0.4 --h 0.333 --low_res_augmentation_prob 0.2 \
        --crop_augmentation_prob 0.2 --photometric_augmentation_prob 0.2

``python main.py --help`` explains every option. A run's files (checkpoints, tables, plots, manifest) are in
``experiments/<prefix>_<MM-DD>_<n>``.
"""

import sys

from adaface.system.interrupt import end_on_interrupt

if __name__ == "__main__":
    end_on_interrupt()
    from adaface.__main__ import main as run_command  # it parses the options before it imports PyTorch

    sys.exit(run_command(["train", *sys.argv[1:]]))
else:
    from adaface.commands.train import main as main
