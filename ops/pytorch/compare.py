"""Loads a model that `dlrm-worker export` wrote into a plain PyTorch DLRM and compares predictions.

    compare.py --model DIR --weights W.safetensors --data FILE.tsv --predictions P.txt

DIR is what `train --save-model DIR` saved (its card tells the shape), W.safetensors what `export`
wrote, FILE.tsv text with a header whose categorical columns hold integers, P.txt what `predict`
wrote for it. Dense transforms: none and log1p. It needs torch, numpy and safetensors, trains
nothing, and fails where a probability differs by more than --tolerance.
"""

import argparse
import csv
import json
import math
import pathlib
import sys

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn


class Dlrm(nn.Module):
    """facebookresearch/dlrm's names: bot_l, top_l, emb_l."""

    def __init__(self, shape, rows):
        super().__init__()
        dim = shape["sparse_feature_size"]
        self.interaction = shape["interaction"]
        self.emb_l = nn.ModuleList(nn.EmbeddingBag(n, dim, mode="sum") for n in rows)
        self.bot_l = mlp(shape["mlp_bottom"], nn.ReLU)
        self.top_l = mlp([self.width(shape), *shape["mlp_top"]], nn.Sigmoid)

    def width(self, shape):
        x, vectors = shape["mlp_bottom"][-1], len(self.emb_l) + 1
        return {
            "dot": x + vectors * (vectors - 1) // 2,
            "dot_with_itself": x + vectors * (vectors + 1) // 2,
            "cat": x + len(self.emb_l) * shape["sparse_feature_size"],
        }[self.interaction]

    def forward(self, dense, ids):  # [batch, dense width], [batch, features]
        x = self.bot_l(dense)
        pooled = [table(ids[:, i : i + 1]) for i, table in enumerate(self.emb_l)]
        if self.interaction == "cat":
            return self.top_l(torch.cat([x, *pooled], 1)).squeeze(1)
        vectors = torch.stack([x, *pooled], 1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        offset = 0 if self.interaction == "dot_with_itself" else -1
        i, j = torch.tril_indices(vectors.shape[1], vectors.shape[1], offset)
        return self.top_l(torch.cat([x, products[:, i, j]], 1)).squeeze(1)


def mlp(widths, last):
    layers = []
    for place, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
        layers.append(nn.Linear(inputs, outputs))
        layers.append(last() if place + 2 == len(widths) else nn.ReLU())
    return nn.Sequential(*layers)


def read_rows(path, card):
    """Dense values after their transform, and ids."""
    columns, modulo = card["columns"], card["max_ind_range"]
    if card["missing_indicator"]:
        raise SystemExit("the model has indicators of missing values, which this script has not")
    transforms = {"none": lambda x: x, "log1p": lambda x: math.log1p(x) if x > 0 else 0.0}
    transform = card["dense_transform"]
    if transform not in transforms:
        raise SystemExit(f"dense transform {transform}: expected one of {list(transforms)}")
    transform = transforms[transform]
    dense, ids = [], []
    with open(path, newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            values = (row[name] for name in columns["dense"])
            dense.append([transform(float(value)) if value else 0.0 for value in values])
            of_row = [int(row[name]) for name in columns["categorical"]]
            ids.append([id % modulo if modulo else id for id in of_row])
    return np.array(dense, np.float32), np.array(ids, np.int64)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag in ("--model", "--weights", "--data", "--predictions"):
        parser.add_argument(flag, type=pathlib.Path, required=True)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    args = parser.parse_args()
    card = json.loads((args.model / "model.json").read_text())
    weights = load_file(args.weights)
    tables = len(card["columns"]["categorical"])
    rows = [weights[f"emb_l.{i}.weight"].shape[0] for i in range(tables)]
    if card.get("pooling", "sum") != "sum":
        raise SystemExit(f"the model's pooling is {card['pooling']}, this script sums")
    model = Dlrm(card["architecture"], rows)
    model.load_state_dict(weights)  # refuses names and shapes that differ
    dense, ids = read_rows(args.data, card)
    with torch.no_grad():
        found = model(torch.from_numpy(dense), torch.from_numpy(ids)).numpy()
    expected = np.loadtxt(args.predictions, dtype=np.float32, ndmin=1)
    if found.shape != expected.shape:
        raise SystemExit(f"{len(expected)} predictions for {len(found)} rows")
    difference = np.abs(found - expected).max()
    print(f"{len(found)} predictions, the largest difference {difference:.2e}")
    sys.exit(0 if difference <= args.tolerance else 1)


if __name__ == "__main__":
    main()
