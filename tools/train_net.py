#!/usr/bin/env python3
"""Train or evaluate a network: `train_net.py --config FILE [--eval-only] [--resume] [KEY VALUE ...]`."""

from fbnetv3.cli import ArgumentParser, run_tool
from fbnetv3.config import load_config
from fbnetv3.engine import run_evaluation, run_training
from fbnetv3.engine.memory import keep_freed_memory


def main(argv=None):
    parser = ArgumentParser(description="Train a network, or evaluate one.")
    parser.add_argument("--config", "--config-file", required=True, metavar="FILE", help="YAML file, see configs/")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, or the run in OUTPUT_DIR")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in OUTPUT_DIR")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help="config keys to change, such as SOLVER.LR 0.1"
    )
    args = parser.parse_intermixed_args(argv)
    cfg = load_config(args.config, args.overrides)
    if args.eval_only:
        print_metrics(run_evaluation(cfg))
        return
    keep_freed_memory()
    result = run_training(cfg, resume=args.resume)
    print_metrics(result.metrics)
    for what in ("weights", "best", "checkpoints", "metrics", "curve", "log", "tensorboard"):
        print(f"{what + ':':12} {getattr(result.files, what)}")


def print_metrics(metrics):
    names = {"top1": "top1", "top5": "top5", "ema_top1": "EMA's top1", "ema_top5": "EMA's top5"}
    shown = [f"{words} {metrics[name]:.2f} %" for name, words in names.items() if name in metrics]
    print(f"{', '.join(shown)}, loss {metrics['loss']:.4f} on {metrics['images']} images")


if __name__ == "__main__":
    run_tool(main, after_interrupt="add --resume to go on from the last checkpoint")
