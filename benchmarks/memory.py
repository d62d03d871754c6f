"""Peak memory of the server and of a device, each measured in a process of its own.

    python benchmarks/memory.py

memsfl is `Server.step` behind the queue of a round: one base, an adapter and AdamW's moments per device, every
device's activations waiting, cuts 1, 1, 2, 2, 3, 3 and again; a few steps, then the end of the round. The devices are
not in that process: what they would send, and the moments of steps before, are made up.

SFL-V1 keeps a server-side model of its own for every device and processes all at the same time (SplitFed, Thapa et
al. 2022), so all activations of its models are alive together; here all forward passes come first, then the
backward passes one by one, which needs less than true concurrency would. "one by one" runs one model's step after
another's: separate models, but memsfl's schedule. Its models are separate `Base` objects; that their weights share no
memory is checked. They have cutlayer's loss without copies of the logits, as memsfl has; plain PEFT has transformers'.

A device runs `Device.forward` and `Device.backward` with k of the model's blocks, beside what `model/cost.py` predicts.

A whole run is all that a process does from its start: imports, counting of costs, an evaluation of 60 rows, steps in
rounds of one device with everything in one process, another evaluation; beside plain PEFT's loop with the same batches,
which evaluates in batches of its own size by transformers' loss. It is SmolLM2's shape, 4 x 96 tokens; alone:

    python benchmarks/memory.py --only-whole

A device's process with frozen weights in few bits is held against one in fp32, whole and beside its imports, which no
dtype makes smaller; with a batch of 4 and of 1, and with blocks recomputed. It is the same shape at cut 6:

    python benchmarks/memory.py --only-few-bits

Peaks are VmHWM, and on cuda the allocator's. The floor is a process that has only imported torch, transformers and
peft; "net" is without it, and for a device without what a tiny model's training took. All weights are random,
converted when read, and so in memory of the process's own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cutlayer.data.batches import parts_of
from cutlayer.device.process import foretold_bytes, own_bytes
from cutlayer.device.talks.split import SHAPE
from cutlayer.fleet.clock import run_virtual
from cutlayer.model.adapter import split_adapter
from cutlayer.model.base import Base
from cutlayer.model.cost import CostModel
from cutlayer.model.part import model_inputs
from cutlayer.model.trainable import OptimizerSettings, Trainable
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.order import longest_tail
from cutlayer.report.listing import Listing
from cutlayer.report.summary import peak_cuda_bytes, peak_memory_bytes
from cutlayer.server.arrivals import Arrivals
from cutlayer.server.evaluate import evaluate
from cutlayer.server.owners import one_per_device
from cutlayer.server.server import Server
from cutlayer.server.steps.train import train
from cutlayer.state import State, joined
from cutlayer.transport.allocator import ON_A_DEVICE, keep_freed_memory
from cutlayer.types import Adapter, Batch, DevicePlan, RoundPlan
from cutlayer.wire.messages import Activations, Assignment, Update
from jobs import JOBS, LEARNING_RATE, VOCABULARY, Job, PlainLoop, random_batches
from models import model_folder
from overhead import SplitRun
from simulated import RUN, equal_fleet, make_device, make_server
from tables import in_fresh_process, publish, require_device

CUTS = (1, 1, 2, 2, 3, 3)
STEPS = 2  # steps are alike: with all moments there from the start, the first has the peak
STEPS_OF_A_PROCESS = 8  # of a whole process the heap is a part, and its holes take some steps to settle
TARGET = 0.79
EVALUATED = 60
WHOLE = (1.1, 1.05)
"""Peak memory and processor time of a whole run, at most, over plain PEFT's."""
IMPORTS = "import torch, peft; from transformers import AutoModelForCausalLM, GPT2LMHeadModel"


@dataclass(frozen=True, slots=True)
class Measured:
    """One process: its peak, and the same without the floor."""

    what: str
    peak_bytes: int
    net_bytes: int


@dataclass(frozen=True, slots=True)
class WholeRun:
    """One process from its start to its end."""

    what: str
    peak_bytes: int
    cpu_seconds: float
    losses: tuple[float, float]


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device with so many blocks, beside the cost model's word."""

    blocks: int
    net_bytes: int
    predicted_bytes: int


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """A device's whole process; `own_bytes` of it were there before there was a model.

    `foretold_bytes` is what `cutlayer plan` would have said that it takes at most.
    """

    num_samples: int
    dtype: str
    recomputed: bool
    peak_bytes: int
    own_bytes: int
    foretold_bytes: int


def cuts_of(num_devices: int) -> list[int]:
    """The cuts of so many devices."""
    return list(islice(cycle(CUTS), num_devices))


def floor() -> int:
    """Peak bytes of an interpreter that imports torch, transformers and peft and does nothing."""
    show = f"{IMPORTS}; print(open('/proc/self/status').read())"
    status = subprocess.run([sys.executable, "-c", show], check=True, capture_output=True, text=True).stdout
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def plain(job: Job, device: str) -> int:
    """Peak bytes of the whole model in a plain PEFT loop."""
    torch.set_num_threads(1)
    loop = PlainLoop(job, random_batches(job, STEPS), fused=True, device=device)
    for _ in range(STEPS):
        loop.step()
    return _peak(device)


def _to_judge_by(job: Job) -> Batch:
    return random_batches(replace(job, num_samples=EVALUATED), 1, seed=1)[0]


def whole_plain(job: Job, steps: int, device: str) -> WholeRun:
    """Plain PEFT from its start to its second evaluation."""
    torch.set_num_threads(1)
    loop = PlainLoop(job, random_batches(job, steps), fused=True, device=device)
    before = _judged_plainly(loop, job, device)
    for _ in range(steps):
        loop.step()
    losses = (before, _judged_plainly(loop, job, device))
    return WholeRun("plain PEFT", _peak(device), time.process_time(), losses)


def _judged_plainly(loop: PlainLoop, job: Job, device: str) -> float:
    batch, size = _to_judge_by(job), job.num_samples
    total = 0.0
    loop.model.eval()
    with torch.inference_mode():
        for rows in parts_of(batch, [min(size, EVALUATED - start) for start in range(0, EVALUATED, size)]):
            loss = loop.model(**model_inputs(rows, device), labels=rows.labels.to(device)).loss
            total += float(loss) * rows.weight
    loop.model.train()
    return total / batch.weight


def whole_split(job: Job, steps: int, device: str) -> WholeRun:
    """A split run from its start to its second evaluation."""
    torch.set_num_threads(1)
    return run_virtual(_whole_split(job, random_batches(job, steps), device))


async def _whole_split(job: Job, batches: list[Batch], device: str) -> WholeRun:
    async with SplitRun(job, batches, device) as run:
        base = run.server.base
        before = evaluate(base, run.server.adapter, [_to_judge_by(job)])["loss"]
        await run.round()
        losses = (before, evaluate(base, run.server.adapter, [_to_judge_by(job)])["loss"])
    return WholeRun("split", _peak(device), time.process_time(), losses)


def memsfl_server(job: Job, num_devices: int, device: str) -> int:
    """Peak bytes of one base that serves one device's activations after the other, through a whole round."""
    torch.set_num_threads(1)
    base, fleet = Base(job.settings, device), equal_fleet(num_devices)
    server = make_server(job, base, CostModel(job.settings).of(SHAPE.flow), fleet)
    plans = [
        DevicePlan(profile.name, cut, job.num_samples, STEPS)
        for profile, cut in zip(fleet.devices, cuts_of(num_devices), strict=True)
    ]
    run_virtual(_hold_round(server, RoundPlan(0, tuple(plans)), job))
    return _peak(device)


async def _hold_round(server: Server, plan: RoundPlan, job: Job) -> None:
    """A round as `rounds/split.py` holds it, cut short: all have arrived, the first are served, all are averaged."""
    order = longest_tail()
    server.begin(plan, one_per_device)
    held = {device.device: server.base.server_names(device.cut) for device in plan.devices}
    moments = {name: State(tensors=some_moments(split_adapter(server.adapter, names))) for name, names in held.items()}
    server.adapters.load_moments(joined(moments))
    arrivals = Arrivals(plan, server.forecast, job.num_tokens)
    for device in plan.devices:
        arrivals.put(made_up(job, device.device, server.base))
    for _ in range(STEPS):
        activations = await arrivals.pick(order)
        assert activations is not None, "all have arrived"
        await train(server, activations, server.ledger.device(activations.device))
    for device in plan.devices:
        adapter = split_adapter(server.adapter, server.base.device_names(device.cut))
        trained = {name: value.clone() for name, value in adapter.items()}
        server.accept(Update(RUN, 0, device.device, trained, 0, job.num_samples, job.num_samples, 0.0, 0.0))
    server.adapter = mean_per_block()(server.adapter, server.contributions(), plan)


def some_moments(adapter: Adapter) -> Adapter:
    """AdamW's state of these tensors, as after a step."""
    moments = {f"{name}#step": torch.ones(()) for name in adapter}
    for key in ("exp_avg", "exp_avg_sq"):
        moments |= {f"{name}#{key}": torch.full_like(value, 1e-4) for name, value in adapter.items()}
    return moments


def made_up(job: Job, device: str, base: Base) -> Activations:
    """Activations of the right shape, without a device."""
    generator = torch.Generator().manual_seed(0)
    shape = (job.num_samples, job.num_tokens)
    h_BTD = torch.randn(*shape, base.config.hidden_size, generator=generator).to(base.device, base.dtype)
    labels = torch.randint(VOCABULARY[job.model], shape, generator=generator, dtype=torch.int32)
    return Activations(RUN, 0, 0, device, h_BTD, torch.ones(shape, dtype=torch.bool), labels, labels.numel())


class OwnModel:
    """SFL-V1's server-side model of one device: its own weights, adapter and optimizer."""

    def __init__(self, job: Job, cut: int, device: str) -> None:
        self.base = Base(job.settings, device)
        self.part = self.base.server_part(cut)
        adapter = split_adapter(self.base.initial_adapter(seed=0), self.base.server_names(cut))
        self._trainable = Trainable(adapter, OptimizerSettings())
        self._trainable.load_moments(some_moments(adapter))
        self.part.use(self._trainable.parameters)

    def loss(self, sent: Activations) -> Tensor:
        """The forward pass."""
        device = self.base.device
        return self.part.loss(sent.h_BTD.requires_grad_(), sent.mask_BT.to(device), sent.labels.long().to(device))

    def learn(self, loss: Tensor) -> None:
        """The backward pass and the optimizer's step."""
        loss.backward()
        self._trainable.step(LEARNING_RATE)


def sfl_v1_server(job: Job, num_devices: int, device: str, at_once: bool) -> int:
    """Peak bytes of a server-side model per device, all processed at once or one by one."""
    torch.set_num_threads(1)
    models = [OwnModel(job, cut, device) for cut in cuts_of(num_devices)]
    _check_separate(models)
    queue = [made_up(job, f"device-{index:02d}", model.base) for index, model in enumerate(models)]
    if at_once:
        losses = [model.loss(sent) for model, sent in zip(models, queue, strict=True)]
        for model, loss in zip(models, losses, strict=True):
            model.learn(loss)
    else:
        for model, sent in list(zip(models, queue, strict=True))[:STEPS]:
            model.learn(model.loss(sent))
    return _peak(device)


def _check_separate(models: Sequence[OwnModel]) -> None:
    """The contender is honest: no two models share a weight."""
    owned = [{weight.data_ptr() for weight in model.part.model.parameters()} for model in models]
    assert len(set[int]().union(*owned)) == sum(len(pointers) for pointers in owned), "each model has its own weights"


def device_side(job: Job, blocks: int, device: str) -> tuple[int, int]:
    """Bytes that a device with so many blocks adds to a process that has trained a tiny model, and the prediction.

    Without the tiny model first, what torch sets up at its first step would be taken for the device's.
    """
    torch.set_num_threads(1)
    before, _ = _train_device(JOBS["tiny"], 1, device)
    after, predicted = _train_device(job, blocks, device)
    return after - before, predicted


def device_process(job: Job, device: str) -> ProcessRow:
    """A device's process from its start to the end of its steps, with the heap as a device sets it."""
    torch.set_num_threads(1)
    keep_freed_memory(ON_A_DEVICE)
    own = own_bytes()
    peak, _ = _train_device(job, job.cut, device, STEPS_OF_A_PROCESS)
    costs = CostModel(job.settings).of(SHAPE.flow)
    foretold = foretold_bytes(own, costs, DevicePlan("device", job.cut), job.num_samples, job.num_tokens)
    return ProcessRow(job.num_samples, job.dtype, job.recomputed, peak, own, foretold)


def _train_device(job: Job, blocks: int, device: str, num_steps: int = STEPS) -> tuple[int, int]:
    """A few steps; returns the peak and the predicted bytes, which are counted afterwards: counting takes memory."""
    base, costs = Base(job.settings, device), CostModel(job.settings).of(SHAPE.flow)
    profile = equal_fleet(1).devices[0]
    player = make_device(profile, base, costs, random_batches(job, num_steps))
    plan = DevicePlan(profile.name, blocks, job.num_samples, num_steps)
    adapter = split_adapter(base.initial_adapter(seed=0), base.device_names(blocks))
    player.begin(Assignment(RUN, 0, profile.name, plan, (LEARNING_RATE,) * num_steps, adapter))

    async def steps() -> None:
        for step in range(num_steps):
            batch = player.draw()
            h_BTD = await player.bottom(batch, step)
            await player.back(batch, h_BTD, torch.randn_like(h_BTD), step, moves=True)

    run_virtual(steps())
    return _peak(device), costs.device(plan, job.num_samples, job.num_tokens).memory_bytes


def _peak(device: str) -> int:
    return peak_memory_bytes() if torch.device(device).type == "cpu" else peak_cuda_bytes() or 0


def bound_per_device(job: Job) -> float:
    """Bytes that a device may add to the memsfl server: adapter, AdamW's two moments, queued message; mean of CUTS."""
    base, costs = Base(job.settings, "meta"), CostModel(job.settings)
    adapter = sum(costs.adapter_bytes(base.server_names(cut)) for cut in CUTS) / len(CUTS)
    labels_and_mask = (4 + 1) * job.num_samples * job.num_tokens
    return 3 * adapter + costs.activation_bytes(job.num_samples, job.num_tokens) + labels_and_mask


def mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:.1f}" if num_bytes < 100 * 2**20 else f"{num_bytes / 2**20:.0f}"


def server_table(rows: Sequence[Measured], versus: Measured) -> Listing:
    """Every server beside SFL-V1."""
    result = Listing(title=f"server: peak memory in MiB (aim at 6 devices: {TARGET:.0%} less than SFL-V1)")
    result.add_column("process")
    for heading in ("peak", "net of floor", "peak under SFL-V1", "net under SFL-V1"):
        result.add_column(heading, justify="right")
    for row in rows:
        less = (1 - row.peak_bytes / versus.peak_bytes, 1 - row.net_bytes / versus.net_bytes)
        result.add_row(row.what, mib(row.peak_bytes), mib(row.net_bytes), *(f"{share:.1%}" for share in less))
    return result


def device_table(rows: Sequence[DeviceRow]) -> Listing:
    """Every depth of a device beside its prediction."""
    result = Listing(title="device: peak memory in MiB, net of a process that has trained a tiny model")
    for heading in ("blocks", "measured", "predicted", "predicted/measured"):
        result.add_column(heading, justify="right")
    for row in rows:
        ratio = f"{row.predicted_bytes / row.net_bytes:.2f}" if row.net_bytes else "-"  # too small to see
        result.add_row(str(row.blocks), mib(row.net_bytes), mib(row.predicted_bytes), ratio)
    return result


def few_bits_table(rows: Sequence[ProcessRow], job: Job) -> Listing:
    """Every process beside the one in fp32 with the same batch: as a whole, and without what was there before."""
    result = Listing(title=f"{job.model}: device with {job.cut} blocks, MiB (aim: 0.4 of fp32's)")
    for heading in ("batch", "weights", "blocks"):
        result.add_column(heading)
    for heading in ("process", "of fp32's", "foretold", "over it", "before a model", "beside it", "of fp32's"):
        result.add_column(heading, justify="right")
    for row in rows:
        plain = next(one for one in rows if one.num_samples == row.num_samples and one.dtype == "fp32")
        net, plain_net = row.peak_bytes - row.own_bytes, plain.peak_bytes - plain.own_bytes
        result.add_row(
            f"{row.num_samples} x {job.num_tokens}",
            row.dtype,
            "recomputed" if row.recomputed else "kept",
            mib(row.peak_bytes),
            f"{row.peak_bytes / plain.peak_bytes:.2f}",
            mib(row.foretold_bytes),
            f"{row.foretold_bytes / row.peak_bytes:.2f}",
            mib(row.own_bytes),
            mib(net),
            f"{net / plain_net:.2f}",
        )
    return result


def whole_table(split: WholeRun, plain: WholeRun, job: Job, steps: int) -> Listing:
    """A whole run beside plain PEFT's."""
    aims = f"aims: memory {WHOLE[0]}, processor {WHOLE[1]}"
    result = Listing(title=f"{job.model}: whole run of {steps} steps over plain PEFT's ({aims})")
    for heading in ("process", "peak MiB", "ratio", "processor s", "ratio", "loss before", "after"):
        result.add_column(heading, justify="left" if heading == "process" else "right")
    for row in (plain, split):
        ratios = row.peak_bytes / plain.peak_bytes, row.cpu_seconds / plain.cpu_seconds
        numbers = mib(row.peak_bytes), f"{ratios[0]:.2f}", f"{row.cpu_seconds:.1f}", f"{ratios[1]:.2f}"
        result.add_row(row.what, *numbers, *(f"{loss:.4f}" for loss in row.losses))
    return result


def growth_table(per_device: float, bound: float, few: int, many: int) -> Listing:
    """The memory that one more device adds, as a table."""
    result = Listing(title=f"memsfl server: MiB per added device, from {few} to {many} devices")
    for heading in ("measured", "bound: adapter + moments + queued activations"):
        result.add_column(heading, justify="right")
    result.add_row(f"{per_device / 2**20:.2f}", f"{bound / 2**20:.2f}")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables and writes the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--model", choices=[name for name, job in JOBS.items() if job.task == "causal-lm"], default="gpt2"
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[6, 12, 24], help="fleets of the memsfl server")
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 3, 6, 12], help="blocks on a device")
    parser.add_argument(
        "--whole-model",
        choices=[name for name, job in JOBS.items() if job.task == "causal-lm"],
        default="smollm2-random",
        help="of the whole runs",
    )
    parser.add_argument("--whole-steps", type=int, default=24, help="steps of a whole run; 0 leaves it out")
    parser.add_argument("--only-whole", action="store_true", help="measure whole runs and nothing else")
    parser.add_argument("--only-few-bits", action="store_true", help="measure few bits on --whole-model, no more")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/memory.json"))
    args = parser.parse_args(arguments)
    require_device(args.device)
    model_folder(args.whole_model if args.only_few_bits else args.model)
    job, few, many = JOBS[args.model], min(args.devices), max(args.devices)
    settings = {name: value for name, value in vars(args).items() if name != "json"}
    if args.only_few_bits:
        few_bits = _few_bits(JOBS[args.whole_model], args.device)
        table = few_bits_table(few_bits, JOBS[args.whole_model])
        publish([table], args.json, settings, {"processes": [asdict(row) for row in few_bits]})
        return
    whole_job, whole = JOBS[args.whole_model], []
    if args.whole_steps:
        model_folder(args.whole_model)
        whole = _whole(whole_job, args.whole_steps, args.device)
    whole_tables = [whole_table(whole[1], whole[0], whole_job, args.whole_steps)] if whole else []
    if args.only_whole:
        publish(whole_tables, args.json, settings, {"whole": [asdict(row) for row in whole]})
        return
    base_line = floor() if torch.device(args.device).type == "cpu" else 0

    def measured(what: str, peak: int) -> Measured:
        return Measured(what, peak, peak - base_line)

    servers = {
        n: measured(f"memsfl, {n} devices", in_fresh_process(memsfl_server, job, n, args.device)) for n in args.devices
    }
    versus = measured(f"SFL-V1, {few} devices", in_fresh_process(sfl_v1_server, job, few, args.device, True))
    one_by_one = in_fresh_process(sfl_v1_server, job, few, args.device, False)
    rows = [
        measured("floor: imports only", base_line),
        measured("plain PEFT, whole model", in_fresh_process(plain, job, args.device)),
        *servers.values(),
        versus,
        measured(f"SFL-V1 one by one, {few} devices", one_by_one),
    ]
    devices = []
    for blocks in args.blocks:
        devices.append(DeviceRow(blocks, *in_fresh_process(device_side, job, blocks, args.device)))
    tables = [server_table(rows, versus), device_table(devices)]
    result: dict[str, Any] = {"servers": [asdict(row) for row in rows], "devices": [asdict(row) for row in devices]}
    if many > few:
        growth, bound = (servers[many].peak_bytes - servers[few].peak_bytes) / (many - few), bound_per_device(job)
        tables.insert(1, growth_table(growth, bound, few, many))
        result |= {"bytes_per_added_device": growth, "bound_per_added_device": bound}
    result["whole"] = [asdict(row) for row in whole]
    publish([*tables, *whole_tables], args.json, settings, result)


def _few_bits(job: Job, device: str) -> list[ProcessRow]:
    kinds = [("fp32", False), ("int8", False), ("int8", True)]
    jobs = [replace(job, num_samples=n, dtype=d, recomputed=r) for n in (job.num_samples, 1) for d, r in kinds]
    return [in_fresh_process(device_process, each, device) for each in jobs]


def _whole(job: Job, steps: int, device: str) -> list[WholeRun]:
    return [in_fresh_process(each, job, steps, device) for each in (whole_plain, whole_split)]


if __name__ == "__main__":
    main()
