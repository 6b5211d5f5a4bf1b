"""Training and evaluation of classifiers."""

from fbnetv3.training.builders import preprocessing_from_config
from fbnetv3.training.classifier_training import RunResult, train, train_classifier
from fbnetv3.training.distillation.teacher_inference import cache_teacher_logits
from fbnetv3.training.evaluation.classifier_evaluation import evaluate
from fbnetv3.training.evaluation.weights_evaluation import evaluate_classifier
from fbnetv3.training.fine_tuning.lr_range_test import find_lr
from fbnetv3.training.losses import LOSSES
from fbnetv3.training.schedules import SCHEDULES
from fbnetv3.training.trainer import Hook, Trainer

__all__ = [
    "LOSSES",
    "SCHEDULES",
    "Hook",
    "RunResult",
    "Trainer",
    "cache_teacher_logits",
    "evaluate",
    "evaluate_classifier",
    "find_lr",
    "preprocessing_from_config",
    "train",
    "train_classifier",
]
