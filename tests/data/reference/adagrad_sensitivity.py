"""How far 32 bits determine the Kaggle-shape Adagrad run: PyTorch against itself.

Repeats `kaggle-shape/adagrad.json`, then runs it again in double precision and with half of the
network's weights moved by one unit in the last place, and prints the first step whose loss is more
than 2e-5 from the reference. Needs torch, numpy, pyarrow and safetensors; no test runs it.
"""
import json
import pathlib

import numpy
import pyarrow.parquet
import torch
from safetensors.torch import load_file
from torch.nn import functional

FOLDER = pathlib.Path(__file__).parent / "kaggle-shape"
STEPS, BATCH, TABLES, DENSE = 48, 128, 26, 13
WEIGHTS = load_file(FOLDER / "init.safetensors")
COLUMNS = pyarrow.parquet.read_table(FOLDER / "batches.parquet").to_pydict()
LABELS = torch.tensor(COLUMNS["label"], dtype=torch.float32)
INPUTS = torch.tensor(numpy.stack([COLUMNS[f"I{i + 1}"] for i in range(DENSE)], 1))
IDS = [torch.tensor(COLUMNS[f"C{i + 1}"]) for i in range(TABLES)]
REFERENCE = json.loads((FOLDER / "adagrad.json").read_text())["losses"]
PAIRS = [(i, j) for i in range(TABLES + 1) for j in range(i)]


def start(nudge, dtype):
    generator = torch.Generator().manual_seed(nudge)
    weights = {name: value.clone().to(dtype) for name, value in WEIGHTS.items()}
    for name, value in weights.items():
        if nudge and not name.startswith("emb"):
            moved = torch.rand(value.shape, generator=generator) < 0.5
            value[moved] = torch.nextafter(value[moved], torch.full_like(value[moved], 9.0))
        value.requires_grad_(True)
    return weights


def losses(nudge=0, dtype=torch.float32):
    weights = start(nudge, dtype)
    optimizer = torch.optim.Adagrad(weights.values(), lr=0.01, eps=1e-10)
    found = []
    for step in range(STEPS):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        x = INPUTS[rows].to(dtype)
        for layer in (0, 2, 4, 6):
            name = f"bot_l.{layer}"
            x = functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"]).relu()
        vectors = [x] + [
            functional.embedding_bag(
                IDS[t][rows], weights[f"emb_l.{t}.weight"], torch.arange(BATCH), mode="sum", sparse=True
            )
            for t in range(TABLES)
        ]
        stacked = torch.stack(vectors, 1)
        products = torch.bmm(stacked, stacked.transpose(1, 2))
        z = torch.cat([x, products[:, [i for i, _ in PAIRS], [j for _, j in PAIRS]]], 1)
        for layer in (0, 2):
            name = f"top_l.{layer}"
            z = functional.linear(z, weights[f"{name}.weight"], weights[f"{name}.bias"]).relu()
        z = functional.linear(z, weights["top_l.4.weight"], weights["top_l.4.bias"])
        p = torch.sigmoid(z).squeeze(1)
        loss = functional.binary_cross_entropy(p, LABELS[rows].to(dtype))
        found.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found


def compare(what, found):
    apart = [abs(a - b) for a, b in zip(found, REFERENCE)]
    first = next((step for step, x in enumerate(apart) if x > 2e-5), None)
    print(f"{what:30} first step beyond 2e-5: {first}, largest difference {max(apart):.2g}")


print("torch", torch.__version__)
compare("as it is", losses())
compare("double precision", losses(dtype=torch.float64))
for nudge in range(1, 7):
    compare(f"weights nudged, seed {nudge}", losses(nudge))
