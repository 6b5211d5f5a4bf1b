"""Every key of a training config, its default, and what it does."""

from fvcore.common.config import CfgNode as CN

_C = CN()

# Seed of everything random: weights, order of the images, augmentation, dropout.
_C.SEED = 0
# A recipe file (docs/training.md): its values take the place of the keys that it covers. "" for none. Like an
# architecture's, it is looked for beside the config file that names it first.
_C.RECIPE = ""
# Folder for checkpoints, logs, metrics and the curve.
_C.OUTPUT_DIR = "output/run"
# Modules to import before anything is looked up by name, such as "my_package.datasets"; they register your own
# datasets, blocks, losses, optimizers and so on. The current folder is searched too.
_C.IMPORTS = []
# "auto" (a GPU if there is one, else the CPU), or a torch device such as "cpu" or "cuda:1".
_C.DEVICE = "auto"

_C.MODEL = CN()
# Registered name of an architecture (tools/analyze_net.py lists them), the path of its YAML file, or a network of
# torchvision's such as torchvision/resnet50.
_C.MODEL.ARCH = "fbnetv3_a"
# Folders with more architecture files (*.yaml), which this run then knows by name.
_C.MODEL.ARCH_DIRS = []
# Outputs of the classifier; 0 means the number of the dataset's classes.
_C.MODEL.NUM_CLASSES = 0
# Channels of the input: 3 for RGB, 1 for grey.
_C.MODEL.IN_CHANS = 3
# Dropout before the classifier's head.
_C.MODEL.DROP_RATE = 0.0
# Stochastic depth of the last block, growing linearly from 0 at the first.
_C.MODEL.DROP_PATH_RATE = 0.0
# Weights to start from or to evaluate: a file, a URL, or "zoo://" and a model zoo entry. "" starts afresh.
_C.MODEL.WEIGHTS = ""
# NHWC memory order, which is faster on CPUs and on GPUs with tensor cores.
_C.MODEL.CHANNELS_LAST = True
# Where several processes train together: BatchNorm over all of a step's images, not over each process's part of them,
# so that the result does not depend on how many processes there are.
_C.MODEL.SYNC_BN = True
# Compile the network with torch.compile: a minute or two at the start, faster steps afterwards.
_C.MODEL.COMPILE = False

_C.DATA = CN()
# Registered name of a dataset: digits, cifar10, imagefolder, imagelist, shards.
_C.DATA.NAME = "imagefolder"
# Its folder; for imagefolder the one that holds train/ and val/ (or test/), each with a folder a class; for
# imagelist the split file; for shards the one that holds the tar files.
_C.DATA.ROOT = ""
# Processes that read images, for each process that trains; 0 reads in the training process.
_C.DATA.WORKERS = 2
# Damaged images that a run skips before it ends with an error that names them.
_C.DATA.MAX_CORRUPT = 0

_C.INPUT = CN()
# Side of the network's square input in pixels; 0 means the architecture's own.
_C.INPUT.RESOLUTION = 0
# Short side before the centre crop of evaluation, in pixels; 0 keeps the architecture's ratio to RESOLUTION.
_C.INPUT.RESIZE = 0
# Mean of RGB (or grey) in [0, 1], which normalisation subtracts; as many values as channels.
_C.INPUT.MEAN = [0.485, 0.456, 0.406]
# Deviation, by which it then divides; as many values as channels.
_C.INPUT.STD = [0.229, 0.224, 0.225]
# Interpolation of every resize: bilinear, bicubic or nearest.
_C.INPUT.INTERPOLATION = "bilinear"
# Crop in training: "random_resized" (ImageNet), "padded" (pad, then crop at random), or "none" (as in evaluation).
_C.INPUT.CROP = "random_resized"
# Smallest and largest share of the image's area that "random_resized" cuts out.
_C.INPUT.CROP_SCALE = [0.08, 1.0]
# Pixels that "padded" adds on each side.
_C.INPUT.CROP_PADDING = 4
# Mirror half of the images in training.
_C.INPUT.FLIP = True
# Learned or random augmentation after the crop: none, autoaugment (ImageNet's policy) or randaugment.
_C.INPUT.AUTO_AUGMENT = "none"
# Share of the training images from which a random rectangle is erased.
_C.INPUT.RANDOM_ERASING = 0.0
# Alpha of mixup's Beta distribution; 0 for no mixup.
_C.INPUT.MIXUP = 0.0

_C.SOLVER = CN()
# Registered name of an optimiser: sgd, rmsprop.
_C.SOLVER.OPTIMIZER = "sgd"
# Learning rate at the end of the warm-up, for a batch of LR_BATCH_SIZE images.
_C.SOLVER.LR = 0.1
# The learning rate grows in proportion to BATCH_SIZE / LR_BATCH_SIZE; 0 takes LR as it is.
_C.SOLVER.LR_BATCH_SIZE = 0
# Momentum of either optimiser.
_C.SOLVER.MOMENTUM = 0.9
# Nesterov's momentum, for sgd.
_C.SOLVER.NESTEROV = True
# RMSProp's smoothing of the squared gradient. The paper does not give it.
_C.SOLVER.RMSPROP_ALPHA = 0.9
# What is added to the root of RMSProp's squared gradient. The paper does not give it. With 0.25,
# gradients much smaller than that move the weights as far at a rate of lr as SGD at 4 * lr, which is what Table 2's
# factor of 4 between the two suggests; with 1e-3, no recipe of Table 2 trained a small FBNetV3 on CIFAR-10.
_C.SOLVER.RMSPROP_EPS = 0.25
# L2 penalty on the weights.
_C.SOLVER.WEIGHT_DECAY = 1e-5
# Whether weight decay holds for biases and for the scales and shifts of norms too.
_C.SOLVER.DECAY_NORM_BIAS = True
# Passes over the training images.
_C.SOLVER.EPOCHS = 400
# Images a step, over all processes.
_C.SOLVER.BATCH_SIZE = 256
# Parts into which a step's images are split, one after the other, where memory is short; BatchNorm sees a part.
_C.SOLVER.ACCUMULATE = 1
# Arithmetic of forward and backward: float32, bfloat16 or float16 (autocast; float16 with loss scaling).
_C.SOLVER.PRECISION = "float32"
# "cosine" (down to 0), or "exponential" (times DECAY with each epoch).
_C.SOLVER.SCHEDULE = "exponential"
# Factor an epoch of the exponential schedule: 0.9875 in the paper's final trainings, 0.963 in its search.
_C.SOLVER.DECAY = 0.9875
# Epochs in which the learning rate rises linearly from WARMUP_FACTOR * LR.
_C.SOLVER.WARMUP_EPOCHS = 5.0
# Share of LR that the warm-up begins with.
_C.SOLVER.WARMUP_FACTOR = 0.1
# Share of the target that label smoothing spreads over all classes.
_C.SOLVER.LABEL_SMOOTHING = 0.0

_C.EMA = CN()
# Average the weights and BatchNorm's statistics over training; evaluate and save the average beside the raw ones.
_C.EMA.ENABLED = False
# Weight of the past in each step.
_C.EMA.DECAY = 0.9998

_C.DISTILL = CN()
# Architecture of the teacher, named like MODEL.ARCH; "" for none.
_C.DISTILL.ARCH = ""
# Its weights, named like MODEL.WEIGHTS.
_C.DISTILL.WEIGHTS = ""
# Side of its input in pixels; 0 means its own.
_C.DISTILL.RESOLUTION = 0
# Weight of the teacher's answers in the loss; the labels have the rest (Sec. 4.2).
_C.DISTILL.WEIGHT = 0.8
# Folder with the teacher's answers, made once by tools/cache_teacher.py, so that training need not run the teacher.
# Not with mixup.
_C.DISTILL.CACHE = ""
# In how many fixed versions an image comes then, one after the other, instead of a new one in each epoch.
_C.DISTILL.VIEWS = 1

_C.EVAL = CN()
# Epochs between evaluations; the last epoch is always evaluated.
_C.EVAL.PERIOD = 1
# Images a step in evaluation, for each process.
_C.EVAL.BATCH_SIZE = 256

_C.CHECKPOINT = CN()
# Epochs between checkpoints; the last epoch is always kept.
_C.CHECKPOINT.PERIOD = 1
# Steps between checkpoints besides, for long epochs; 0 for none.
_C.CHECKPOINT.STEPS = 0
# Checkpoints to keep, the newest.
_C.CHECKPOINT.KEEP = 3

_C.LOG = CN()
# Steps between two entries of the metrics file.
_C.LOG.PERIOD = 20
