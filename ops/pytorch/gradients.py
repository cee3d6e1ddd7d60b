"""Compares the gradients of one step with PyTorch's, in doubles.

    gradients.py --interaction dot|dot_with_itself|cat --loss bce|mse STEP.safetensors

STEP.safetensors holds a step of the tests of the crate `dlrm`: the batch, its rows, the weights and
the gradients found for them. It needs torch and safetensors, and fails where a gradient differs
by more than 1e-4 of itself and 1e-6 of the greatest of its tensor.
"""

import argparse
import sys

import torch
from safetensors.torch import load_file
from torch.nn import functional

RELATIVE, OF_GREATEST = 1e-4, 1e-6


def perceptron(step, part, x, last):
    layers = sum(name.startswith(part) and name.endswith("weight") for name in step)
    for layer in range(layers):
        names = (f"{part}.{2 * layer}.weight", f"{part}.{2 * layer}.bias")
        x = functional.linear(x, *(step[name] for name in names))
        x = last(x) if layer + 1 == layers else torch.relu(x)
    return x


def pooled(step, feature):
    mean, weights = f"mean {feature}" in step, step.get(f"weights {feature}")
    return functional.embedding_bag(
        step[f"indices {feature}"],
        step["rows"],
        step[f"offsets {feature}"],
        mode="mean" if mean else "sum",
        per_sample_weights=weights,
        include_last_offset=True,
    )


def probabilities(step, interaction):
    x = perceptron(step, "bot_l", step["dense"], torch.relu)
    features = sum(name.startswith("indices") for name in step)
    vectors = [pooled(step, feature) for feature in range(features)]
    if interaction == "cat":
        z = torch.cat([x, *vectors], 1)
    else:
        stacked = torch.stack([x, *vectors], 1)
        products = torch.bmm(stacked, stacked.transpose(1, 2))
        offset = 0 if interaction == "dot_with_itself" else -1
        i, j = torch.tril_indices(features + 1, features + 1, offset)
        z = torch.cat([x, products[:, i, j]], 1)
    return perceptron(step, "top_l", z, torch.sigmoid).squeeze(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step")
    parser.add_argument("--interaction", required=True, choices=["dot", "dot_with_itself", "cat"])
    parser.add_argument("--loss", required=True, choices=["bce", "mse"])
    args = parser.parse_args()
    step = {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(args.step).items()
    }
    found = {name.split(" ", 1)[1]: step.pop(name) for name in list(step) if name.startswith("gradient ")}
    for name in found:
        step[name].requires_grad_()
    loss = {"bce": functional.binary_cross_entropy, "mse": functional.mse_loss}[args.loss]
    loss(probabilities(step, args.interaction), step["labels"]).backward()
    wrong = False
    for name, gradient in found.items():
        expected = step[name].grad
        bound = RELATIVE * expected.abs() + OF_GREATEST * expected.abs().max()
        over = ((gradient - expected).abs() / bound).max().item()
        if not over <= 1:
            print(f"{name}: a gradient is off by {over:.2g} times what it may be")
            wrong = True
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
