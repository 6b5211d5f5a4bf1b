"""Training and evaluation of classifiers."""

from fbnetv3.engine.answering import cache_answers
from fbnetv3.engine.build import preprocessing_of
from fbnetv3.engine.evaluation import evaluate
from fbnetv3.engine.run import RunResult, run_evaluation, run_training, train
from fbnetv3.engine.trainer import Hook, Trainer

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
