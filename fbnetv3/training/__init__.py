"""Training and evaluation of classifiers."""

from fbnetv3.training.builders import preprocessing_of
from fbnetv3.training.classifier_evaluation import evaluate
from fbnetv3.training.classifier_training import RunResult, run_evaluation, run_training, train
from fbnetv3.training.distillation.cache_teacher import cache_answers
from fbnetv3.training.trainer import Hook, Trainer

__all__ = [
    "Hook",
    "RunResult",
    "Trainer",
    "cache_answers",
    "evaluate",
    "preprocessing_of",
    "run_evaluation",
    "run_training",
    "train",
]
