"""A DLRM in PyTorch that `bench peers` measures beside the worker.

    peer.py BATCHES MODEL.json

MODEL.json holds shapes and optimizer, BATCHES the batches as plain little-endian arrays (the order
is in `read_batches`). It answers a line of JSON for each line of JSON on standard input, the first
one unasked: which ways of training it has. A request names one of them, a number of threads and of
steps; the answer has samples a second. It reads nothing from disk inside a measured step.
"""

import json
import logging
import sys
import time
import warnings

warnings.filterwarnings("ignore")

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

EPS = 1e-10
BOUND = 0.05  # of new rows: sums of a hundred rows of PyTorch's own N(0, 1) diverge


def read_batches(path, model):
    """For each batch: labels, dense values, keys of each feature one after the other."""
    rows, hots = model["batch"] * model["batches"], model["hots"]
    width = model["mlp_bottom"][0]
    with open(path, "rb") as file:
        labels = np.fromfile(file, "<f4", rows).reshape(model["batches"], -1)
        dense = np.fromfile(file, "<f4", rows * width).reshape(model["batches"], -1, width)
        keys = [np.fromfile(file, "<i8", rows * hot).reshape(model["batches"], -1) for hot in hots]
        if file.read(1):
            raise SystemExit(f"{path}: longer than its shapes say")
    for batch in range(model["batches"]):
        yield (
            torch.from_numpy(labels[batch].copy()),
            torch.from_numpy(dense[batch].copy()),
            [torch.from_numpy(of_feature[batch].copy()) for of_feature in keys],
        )


class Bags(nn.Module):
    """A table for each feature, as facebookresearch/dlrm has them; gradients are sparse."""

    def __init__(self, model):
        super().__init__()
        self.hots, self.batch = model["hots"], model["batch"]
        bag = lambda rows: nn.EmbeddingBag(rows, model["dim"], mode="sum", sparse=True)
        self.tables = nn.ModuleList(bag(rows) for rows in model["rows"])
        for table in self.tables:
            nn.init.uniform_(table.weight, -BOUND, BOUND)

    def prepare(self, keys):
        offsets = [torch.arange(self.batch) * hot for hot in self.hots]
        return list(zip(keys, offsets))

    def forward(self, prepared):
        pooled = [table(*of) for table, of in zip(self.tables, prepared)]
        return torch.stack(pooled, 1)  # [batch, features, dim]


class OneBag(nn.Module):
    """All tables in one, so that one call serves all features."""

    def __init__(self, model):
        super().__init__()
        self.hots, self.batch, self.dim = model["hots"], model["batch"], model["dim"]
        self.first = np.concatenate([[0], np.cumsum(model["rows"])]).tolist()
        self.table = nn.EmbeddingBag(self.first[-1], self.dim, mode="sum", sparse=True)
        nn.init.uniform_(self.table.weight, -BOUND, BOUND)

    def prepare(self, keys):
        # sample after sample, so that the result is [batch, features, dim] without a copy
        parts = [
            (of + first).reshape(self.batch, hot)
            for of, first, hot in zip(keys, self.first, self.hots)
        ]
        lengths = torch.tensor(self.hots).repeat(self.batch)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)[:-1]])
        return torch.cat(parts, 1).flatten(), offsets

    def forward(self, prepared):
        return self.table(*prepared).view(self.batch, len(self.hots), self.dim)


class Fbgemm(nn.Module):
    """FBGEMM's tables, which apply their optimizer within the backward pass."""

    def __init__(self, model):
        super().__init__()
        import fbgemm_gpu
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
            EmbeddingLocation,
            PoolingMode,
        )
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        self.hots, self.batch, self.dim = model["hots"], model["batch"], model["dim"]
        place = (EmbeddingLocation.HOST, ComputeDevice.CPU)
        optimizers = {
            "sgd": EmbOptimType.EXACT_SGD,
            "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        }
        self.tables = SplitTableBatchedEmbeddingBagsCodegen(
            [(rows, self.dim, *place) for rows in model["rows"]],
            optimizer=optimizers[model["optimizer"]],
            learning_rate=model["learning_rate"],
            eps=EPS,
            pooling_mode=PoolingMode.SUM,
        )
        for weights in self.tables.split_embedding_weights():
            weights.uniform_(-BOUND, BOUND)

    def prepare(self, keys):
        lengths = torch.tensor(self.hots).repeat_interleave(self.batch)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        return torch.cat(keys), offsets

    def forward(self, prepared):
        return self.tables(*prepared).view(self.batch, len(self.hots), self.dim)


class RowwiseAdagrad(torch.optim.Optimizer):
    """One accumulator a row, for sparse gradients; facebookresearch/dlrm brings its own too."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad.coalesce()
                rows, values = gradient.indices()[0], gradient.values()
                state = self.state[parameter]
                if not state:
                    state["sum"] = torch.zeros(parameter.shape[0])
                state["sum"].index_add_(0, rows, values.pow(2).mean(1))
                scale = state["sum"][rows].sqrt_().add_(EPS)
                parameter.index_add_(0, rows, values / scale[:, None], alpha=-group["lr"])


class Dense(nn.Module):
    """Bottom MLP, dot interaction, top MLP."""

    def __init__(self, model):
        super().__init__()
        features, dim = len(model["hots"]), model["dim"]
        bottom, top = model["mlp_bottom"], model["mlp_top"]
        below = [(i, j) for i in range(features + 1) for j in range(i)]
        flat = torch.tensor([i * (features + 1) + j for i, j in below])
        self.register_buffer("flat", flat)
        self.bottom = self.mlp(bottom, True)
        self.top = self.mlp([dim + len(below), *top], False)

    @staticmethod
    def mlp(widths, last_rectified):
        layers = []
        for place, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
            layers.append(nn.Linear(inputs, outputs))
            if last_rectified or place + 2 < len(widths):
                layers.append(nn.ReLU(inplace=True))
        return nn.Sequential(*layers)

    def forward(self, dense, pooled):
        x = self.bottom(dense)
        vectors = torch.cat([x[:, None], pooled], 1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        return self.top(torch.cat([x, products.index_select(1, self.flat)], 1)).squeeze(1)


class Training:
    """Tables, dense part and optimizers, and the batches as these tables want them."""

    def __init__(self, model, batches, tables, way):
        torch.manual_seed(1)
        self.batches = [(y, x, tables.prepare(keys)) for y, x, keys in batches]
        self.tables, self.dense, rate = tables, Dense(model), model["learning_rate"]
        self.optimizers = [torch.optim.SGD(self.dense.parameters(), lr=rate, fused=True)]
        if not isinstance(tables, Fbgemm):
            kinds = {"sgd": torch.optim.SGD, "rowwise_adagrad": RowwiseAdagrad}
            kind = kinds[model["optimizer"]]
            self.optimizers.append(kind(list(tables.parameters()), lr=rate))
        self.forward = torch.compile(self.dense) if way == "compiled" else self.dense
        if way == "traced":
            y, x, prepared = self.batches[0]
            self.forward = torch.jit.trace(self.dense, (x, tables(prepared).detach()))
        self.rows, self.next = model["batch"], 0

    def step(self):
        y, x, prepared = self.batches[self.next % len(self.batches)]
        self.next += 1
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss = F.binary_cross_entropy_with_logits(self.forward(x, self.tables(prepared)), y)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def measure(self, steps):
        started = time.perf_counter()
        for _ in range(steps):
            loss = self.step()
        return steps * self.rows / (time.perf_counter() - started), loss.item()


KINDS = {"bags": Bags, "one bag": OneBag, "fbgemm": Fbgemm}
WAYS = ["eager", "traced", "compiled"]


def main():
    logging.disable(logging.WARNING)  # FBGEMM doubts versions of PyTorch that it works with
    batches_path, model_path = sys.argv[1:]
    with open(model_path) as file:
        model = json.load(file)
    batches = list(read_batches(batches_path, model))
    kinds = dict(KINDS)
    try:
        import fbgemm_gpu
    except ImportError:
        del kinds["fbgemm"]
    say({"torch": torch.__version__, "variants": [f"{k}, {w}" for k in kinds for w in WAYS]})
    trainings, tables = {}, {}
    for line in sys.stdin:
        request = json.loads(line)
        name = request["variant"]
        kind, way = name.split(", ")
        torch.set_num_threads(request["threads"])
        if name not in trainings:
            if kind not in tables:
                tables[kind] = kinds[kind](model)
            trainings[name] = Training(model, batches, tables[kind], way)
        training = trainings[name]
        training.measure(request["warm"])
        rate, loss = training.measure(request["steps"])
        if not np.isfinite(loss):
            raise SystemExit(f"{name}: the loss is {loss}")
        say({"samples_per_s": rate, "loss": loss})


def say(answer):
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
