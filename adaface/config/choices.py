"""Choices, defaults and limits of options of the commands, without PyTorch, so that options are parsed first."""

COLORS = ("rgb", "bgr")  # orders of the channels

# models and embeddings
CACHE = "experiments/embeddings"  # default cache folder of the commands
MOST_UNREADABLE = 0.001
EMBEDDINGS_SUFFIX = ".npz"
MOST_DRAWN = 40  # faces in a plot, which has a cell for each pair

# evaluation
POOLINGS = ("pre_norm_vector_add", "norm_weighted_avg", "average", "concat")
DEGRADATIONS = ("blur",)
DEGRADED_PARTS = ("all", "probe")
FAR = 1e-2

# export
FEWEST_IMAGES, MOST_IMAGES = 32, 256  # for calibration
