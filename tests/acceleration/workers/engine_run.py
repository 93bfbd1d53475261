"""Train a toy on one or two processes and write what came out; `test_engine.py` starts it and compares.

python engine_run.py FOLDER NAME=PLUGIN:OTHER,OTHER ...: a run for each NAME, one after the other. Its results
go to FOLDER/NAME, and it continues saved states of the OTHER runs.
"""

import json
import math
import re
import sys
from contextlib import nullcontext
from pathlib import Path

sys.modules["colossalai"] = None  # the torch engine must not need it

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402

from opensora.acceleration.engine import build_engine  # noqa: E402
from opensora.acceleration.parallel import (  # noqa: E402
    all_reduce_mean,
    barrier,
    gather_texts,
    init_distributed,
    parallel_state,
)

STEPS, HALF, SAMPLES = 10, 5, 4


class Toy(nn.Module):
    """A transformer block with odd sizes, a scalar, a table, frozen and unused parameters, and buffers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, 7)
        self.qkv = nn.Linear(7, 21)
        self.project = nn.Linear(7, 7)
        self.sometimes = nn.Linear(7, 7)
        self.mlp = nn.Sequential(nn.Linear(7, 13), nn.GELU(), nn.Linear(13, 7))
        self.table = nn.Parameter(torch.randn(3, 7))
        self.gain = nn.Parameter(torch.tensor(0.9))
        self.never = nn.Parameter(torch.randn(3))
        self.frozen = nn.Parameter(torch.randn(7), requires_grad=False)
        self.head = nn.Linear(7, 5)
        self.register_buffer("freqs", torch.rand(7))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("flag", torch.tensor([True, False]))

    def forward(self, x, use=False):
        x = x.to(self.embed.weight.dtype)
        h = self.embed(x) * (1 + self.table[0]) + self.table[1] * torch.cos(self.freqs) + self.frozen
        q, k, v = self.qkv(F.layer_norm(h, (7,))).chunk(3, -1)
        h = h + self.project(F.scaled_dot_product_attention(q, k, v)) * self.gain
        if use:
            h = h + self.sometimes(h)
        h = h + self.mlp(F.layer_norm(h, (7,)) * (1 + self.table[2]))
        return self.head(h).float()


def batch(step):
    g = torch.Generator().manual_seed(100 + step)
    return torch.randn(SAMPLES, 6, 5, generator=g), torch.randn(SAMPLES, 6, 5, generator=g)


def build(kind="adamw", dtype="fp32", seed=0, plugin=None, lr=None):
    torch.manual_seed(seed)
    model = Toy()
    params = [p for p in model.parameters() if p.requires_grad]
    if kind == "sgd":
        optimizer = torch.optim.SGD(params, lr=lr or 0.1)
    else:
        optimizer = torch.optim.AdamW(params, lr=lr or 1e-2, eps=1e-8, weight_decay=0.1)
    engine = build_engine(
        plugin or PLUGIN, dtype, {"model": model}, {"model": optimizer}, reduce_bucket_mib=0.0005
    )
    return engine


def mine(engine, tensor, parts=1):
    """The rows of this process, in `parts` micro-batches."""
    return tensor[engine.rank :: engine.world_size].chunk(parts)


def backward(engine, step, parts=1, use=False):
    """All micro-batches of a step; returns the mean loss over all processes."""
    x, y = batch(step)
    total = 0.0
    for i, (a, b) in enumerate(zip(mine(engine, x, parts), mine(engine, y, parts), strict=True)):
        with engine.no_sync("model") if i < parts - 1 else nullcontext():
            loss = F.mse_loss(engine.module("model")(a, use), b) / parts
            engine.backward(loss, "model")
        total += loss.item()
    return float(all_reduce_mean(total))


def train(engine, first=0, last=STEPS, max_norm=0.0, parts=1):
    losses, norms = [], []
    for step in range(first, last):
        losses.append(backward(engine, step, parts, use=step % 3 == 1))
        norms.append(engine.clip("model", max_norm))
        stepped = engine.step("model")
        assert stepped or engine.dtype == torch.float16
    return losses, norms


def whole_gradient(engine):
    return engine.gather("model", engine.gradients("model"))


def expected(terms):
    """The gradient by plain torch: the mean over processes of their summed losses (input, target, use)."""
    torch.manual_seed(0)
    model = Toy()
    for own in terms:
        for x, y, use in own:
            (F.mse_loss(model(x, use), y) / len(terms)).backward()
    return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


def keep(prefix, whole):
    tensors.update({f"{prefix}/{key}": tensor.contiguous() for key, tensor in whole.items()})


def gradients():
    for name, parts in (("whole", 1), ("accumulated", SAMPLES // WORLD)):
        engine = build()
        backward(engine, 0, parts)
        keep(f"gradient_{name}", whole_gradient(engine))
        results[f"norm_{name}"] = engine.clip("model", 0.0)
    engine = build()
    backward(engine, 0)
    results["norm_before"] = engine.clip("model", 0.05)
    keep("clipped", whole_gradient(engine))


def losses():
    results["sgd"], _ = train(build("sgd"))
    results["adamw"], results["norms"] = train(build(), max_norm=1.0)


def alone():
    """Without synchronisation a process can work while the others do something else."""
    if PLUGIN in ("zero2", "fsdp2"):  # reduces every micro-batch; gathers weights
        return
    engine = build()
    x, y = batch(0)
    if engine.rank == 0:
        with engine.no_sync("model"):
            engine.backward(F.mse_loss(engine.module("model")(x, True), y), "model")
    barrier()
    engine.backward(F.mse_loss(engine.module("model")(x), y), "model")
    keep("alone", whole_gradient(engine))
    other = [(x, y, False)]
    keep("alone_expected", expected([[(x, y, True), *other]] + [other] * (WORLD - 1)))


def partly_used():
    """A layer that one process uses, in one of two micro-batches."""
    engine = build()
    for part in range(2):
        with engine.no_sync("model") if part == 0 else nullcontext():
            x, y = batch(part)
            a, b = mine(engine, x)[0], mine(engine, y)[0]
            use = part == 0 and engine.rank == engine.world_size - 1
            engine.backward(F.mse_loss(engine.module("model")(a, use), b), "model")
    keep("partly", whole_gradient(engine))
    terms = []
    for rank in range(WORLD):
        rows = [[t[rank::WORLD] for t in batch(part)] for part in range(2)]
        terms.append([(*rows[0], rank == WORLD - 1), (*rows[1], False)])
    keep("partly_expected", expected(terms))
    before = engine.gather("model", engine.masters("model"))
    engine.step("model")
    after = engine.gather("model", engine.masters("model"))
    results["moved"] = {key: not torch.equal(before[key], after[key]) for key in before}


def overflow():
    engine = build()
    train(engine, last=2)
    before = [engine.weights("model"), engine.state("model")]
    raw = {key: p.detach().clone() for key, p in engine.modules["model"].named_parameters()}
    x, y = batch(2)
    loss = F.mse_loss(engine.module("model")(mine(engine, x)[0]), mine(engine, y)[0])
    engine.backward(loss * (math.inf if engine.rank == engine.world_size - 1 else 1.0), "model")
    norm = engine.clip("model", 1.0)
    stepped = engine.step("model")
    after = [engine.weights("model"), engine.state("model")]
    same = all(torch.equal(one[key], two[key]) for one, two in zip(before, after, strict=True) for key in one)
    same &= all(torch.equal(p, raw[key]) for key, p in engine.modules["model"].named_parameters())
    sound = math.isfinite(train(engine, 3, 5)[0][-1])
    ok = not math.isfinite(norm) and not stepped and same and sound
    results["overflow_handled"] = float(all_reduce_mean(float(ok)))


def pieces():
    engine = build()
    g = torch.Generator().manual_seed(5)
    shapes = {key: p.shape for key, p in engine.modules["model"].named_parameters() if p.requires_grad}
    whole = {key: torch.randn(shape, generator=g) for key, shape in shapes.items()}
    cut = engine.scatter("model", whole)
    masters = engine.masters("model")
    shaped = all(cut[key].shape == masters[key].shape for key in cut) and cut.keys() == masters.keys()
    back = engine.gather("model", cut)
    same = all(torch.equal(back[key], whole[key]) for key in whole) if engine.rank == 0 else not back
    shares = engine.gather("model", cut, spread=True)
    same &= all(torch.equal(shares[key], whole[key]) for key in shares) and bool(shares)
    kept = [json.loads(text) for text in gather_texts(json.dumps(sorted(shares)))]
    same &= sorted(key for keys in kept for key in keys) == sorted(whole)  # each on one process
    results["pieces"] = float(all_reduce_mean(float(shaped and same)))
    results["piece_numbers"] = sum(p.numel() for p in masters.values())


def save(engine, folder):
    weights, state = engine.weights("model"), engine.state("model")
    if engine.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / "weights.safetensors")
        save_file(state, folder / "state.safetensors")
    barrier()


def load(engine, folder):
    engine.load("model", load_file(folder / "weights.safetensors"), load_file(folder / "state.safetensors"))


def resume():
    for dtype in ("fp32", "bf16", "fp16"):
        engine = build(dtype=dtype)
        if dtype == "fp16":  # so that the scale is not what it was at the start
            engine._scales["model"].growth_interval = 3
        train(engine, last=HALF, max_norm=1.0)
        save(engine, OUT / dtype)
        losses, _ = train(engine, HALF, max_norm=1.0)
        fresh = build(dtype=dtype, seed=1)
        load(fresh, OUT / dtype)
        if dtype == "fp16":
            fresh._scales["model"].growth_interval = 3
        again, _ = train(fresh, HALF, max_norm=1.0)
        results[f"resumed_{dtype}"] = [losses, again]
        one, two = ({**e.weights("model"), **e.state("model")} for e in (engine, fresh))
        results[f"exact_{dtype}"] = one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
        keep(f"final_{dtype}", engine.weights("model"))


def continue_others():
    for folder in OTHERS:
        engine = build(seed=1)
        load(engine, Path(folder) / "fp32")
        losses, _ = train(engine, HALF, max_norm=1.0)
        results[f"continued_{Path(folder).name}"] = losses
        keep(f"continued_{Path(folder).name}", engine.weights("model"))


def precision():
    """Casting for the forward pass loses nothing of what is trained or saved."""
    torch.manual_seed(0)
    exact = Toy().state_dict()
    for dtype in ("bf16", "fp16"):
        engine = build(dtype=dtype)
        weights = engine.weights("model")
        results[f"kept_{dtype}"] = all(torch.equal(weights[k], exact[k]) for k in exact) if weights else True
        results[f"buffers_{dtype}"] = str(engine.modules["model"].freqs.dtype)
        results[f"losses_{dtype}"], _ = train(engine, max_norm=1.0)
    again = engine.weights("model")
    results["frozen_kept"] = torch.equal(again["frozen"], exact["frozen"]) if again else True
    scale = engine._scales["model"].value
    x, y = batch(0)
    engine.backward(F.mse_loss(engine.module("model")(x), y) * 1e30, "model")
    results["fp16_stepped"] = engine.step("model")
    results["fp16_scale"] = engine._scales["model"].value / scale


def two_modules():
    """A loss that runs through a second network trains only the one it is for."""
    torch.manual_seed(0)
    modules = {"model": nn.Linear(5, 3), "critic": nn.Linear(3, 1)}
    optimizers = {name: torch.optim.SGD(m.parameters(), lr=0.1) for name, m in modules.items()}
    engine = build_engine(PLUGIN, "fp32", modules, optimizers)
    for step in range(3):
        x = batch(step)[0]
        fake = engine.module("model")(mine(engine, x)[0])
        engine.backward(-engine.module("critic")(fake).mean(), "model")
        critic = engine.gradients("critic")
        engine.step("model")
        scores = engine.module("critic")(fake.detach()), engine.module("critic")(torch.ones_like(fake))
        engine.backward(F.softplus(scores[0]).mean() + F.softplus(-scores[1]).mean(), "critic")
        engine.step("critic")
        results["critic_clean"] = not critic
    keep("gan", engine.weights("model") | {f"critic.{k}": v for k, v in engine.weights("critic").items()})


torch.set_num_threads(1)
WORLD = init_distributed("cpu", timeout_s=600).world_size
SCENARIOS = (
    gradients,
    losses,
    alone,
    partly_used,
    overflow,
    pieces,
    resume,
    continue_others,
    precision,
    two_modules,
)
for run in sys.argv[2:]:
    name, PLUGIN, others = re.split("[=:]", run)
    if PLUGIN.startswith("zero") and sys.modules["colossalai"] is None:
        del sys.modules["colossalai"]
    OUT = Path(sys.argv[1]) / name
    OTHERS = [OUT.parent / other for other in others.split(",") if other]
    results, tensors = {}, {}
    for scenario in SCENARIOS:
        scenario()
    results["colossalai"] = sys.modules.get("colossalai") is not None
    if parallel_state().is_main:
        OUT.mkdir(parents=True, exist_ok=True)
        save_file(tensors, OUT / "tensors.safetensors")
        (OUT / "results.json").write_text(json.dumps(results))
    barrier()
