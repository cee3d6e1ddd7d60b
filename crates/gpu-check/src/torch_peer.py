"""PyTorch's own EmbeddingBag and MLPs at the Kaggle shape on a CUDA device: samples a second.

    torch_peer.py ROWS-ROWS-... BATCH STEPS

One line for each precision of the products: its name and the median of three rounds. Batches are on
the device before the clock starts; sparse gradients, SGD, one table a feature.
"""

import sys
import time

import torch
from torch import nn


def mlp(widths, last_rectified):
    layers = []
    for i, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
        layers.append(nn.Linear(inputs, outputs))
        if last_rectified or i + 2 < len(widths):
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class Dlrm(nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.bottom = mlp([13, 512, 256, 64, 16], True)
        self.top = mlp([16 + 27 * 26 // 2, 512, 256, 1], False)
        self.tables = nn.ModuleList(nn.EmbeddingBag(n, 16, mode="sum", sparse=True) for n in rows)
        self.register_buffer("pairs", torch.tril_indices(27, 27, -1))

    def forward(self, dense, ids, offsets):
        x = self.bottom(dense)
        pooled = [table(ids[f], offsets) for f, table in enumerate(self.tables)]
        vectors = torch.stack([x] + pooled, dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        crossed = torch.cat([x, products[:, self.pairs[0], self.pairs[1]]], dim=1)
        return self.top(crossed).squeeze(1)


def main():
    rows = [int(n) for n in sys.argv[1].split("-")]
    batch, steps = int(sys.argv[2]), int(sys.argv[3])
    if not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device")
    device = torch.device("cuda")
    torch.manual_seed(1)
    offsets = torch.arange(batch, device=device)
    batches = []
    for _ in range(8):
        # ids as skewed as Criteo's: a power of a uniform number
        skewed = [(torch.rand(batch, device=device) ** 4 * n).long().clamp_(max=n - 1) for n in rows]
        dense = torch.rand(batch, 13, device=device)
        labels = (torch.rand(batch, device=device) < 0.25).float()
        batches.append((dense, torch.stack(skewed), labels))
    for name in ["f32", "tf32", "bf16"]:
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        model = Dlrm(rows).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        loss_of = nn.BCEWithLogitsLoss()
        brief = torch.autocast("cuda", dtype=torch.bfloat16, enabled=name == "bf16")
        rates = []
        for round_number in range(4):
            torch.cuda.synchronize()
            began = time.perf_counter()
            for step in range(16 if round_number == 0 else steps):
                dense, ids, labels = batches[step % 8]
                optimizer.zero_grad(set_to_none=True)
                with brief:
                    logits = model(dense, ids, offsets)
                loss_of(logits.float(), labels).backward()
                optimizer.step()
            torch.cuda.synchronize()
            if round_number > 0:
                rates.append(steps * batch / (time.perf_counter() - began))
        print(name, sorted(rates)[1], flush=True)
        del model, optimizer


main()
