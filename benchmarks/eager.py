"""Eager inference of FBNetV3-B against timm's network: the same weights, input, threads and run."""

import argparse
from functools import partial

import timm
import torch
from measure import compare, report

import fbnetv3


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    theirs = timm.create_model("fbnetv3_b")
    ours = fbnetv3.create_model("fbnetv3_b_same_padding")
    fbnetv3.load_weights(ours, theirs.state_dict())
    print(f"fbnetv3_b with timm's padding at 224 pixels, {args.threads} threads; timm {timm.__version__} as it comes,")
    print("ours channels-last, as our tools run it")
    ours = ours.to(memory_format=torch.channels_last)
    for batch in (1, 16):
        images = torch.randn(batch, 3, 224, 224)
        ours.eval(), theirs.eval()
        with torch.inference_mode():
            expected, found = theirs(images), ours(images.to(memory_format=torch.channels_last))
            assert (found - expected).abs().max() < 1e-4 * expected.abs().max(), "the outputs differ"
            sides = [partial(infer, model, images) for model in (ours, theirs)]
            report(f"inference, batch {batch}", compare(*sides, rounds=args.rounds))


def infer(model, images):
    return model(in_layout_of(model, images))


def in_layout_of(model, images):
    """The images in our network's memory order, or as they are for timm's."""
    return images.to(memory_format=torch.channels_last) if isinstance(model, fbnetv3.modeling.FBNetV3) else images


if __name__ == "__main__":
    main()
