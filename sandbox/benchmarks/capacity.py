"""What one learner's network link and one endpoint core carry, measured on this machine.

    python sandbox/benchmarks/capacity.py [--secs 5] [--senders 4]

Real play of three Atari games (the shallow network with random weights), real encoded unrolls,
real sockets with CURVE. Prints the tables of sandbox/speed.md: bytes per agent step, bytes per
pull of weights, agent steps per second that one endpoint takes into ready batches, and the plan
that follows for runs of 8 learners x 45 actors and of 1,000 actors.
"""

import argparse
import datetime
import multiprocessing
import os
import pathlib
import platform
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from impala_torch import environments  # noqa: E402
from impala_torch.acting.player import Player  # noqa: E402
from impala_torch.acting.unrolls import UnrollCollector  # noqa: E402
from impala_torch.agents import make_agent, weights  # noqa: E402
from impala_torch.endpoint import keys as curve  # noqa: E402
from impala_torch.endpoint.batches import Batch, BatchQueue, QueueClosed  # noqa: E402
from impala_torch.endpoint.client import EndpointClient, RunEnded  # noqa: E402
from impala_torch.endpoint.codec import UnrollCodec  # noqa: E402
from impala_torch.endpoint.run_spec import run_spec_of  # noqa: E402
from impala_torch.endpoint.server import EndpointServer  # noqa: E402
from impala_torch.flags.config import Config  # noqa: E402
from impala_torch.structures import Unroll, empty_unroll  # noqa: E402

GAMES = ("Pong", "Breakout", "Seaquest")
AGENTS = ("ShallowConvNetAgent", "SimpleConvNetAgent", "ResNetLSTMAgent")
NUM_ENVS, UNROLLS = 16, 10
LINK_BYTES = 125e6  # of 1 Gbit/s
ACTOR_STEPS = 700.0  # agent steps per second of one actor process in the plans
RELAYED = 12  # actors of a relay, in the plans
UPDATES = 5.0  # per second, in the plans: each is a version of the weights


def record(config: Config) -> list[list[bytes]]:
    """Messages of unrolls as an actor sends them."""
    level = environments.level_of(config)
    spec = environments.environment_spec(level)
    agent = make_agent(config.agent_name, spec).for_acting()
    environment = environments.make_environment(level, NUM_ENVS, 1)
    collector = UnrollCollector(Player(agent, environment, 1), config.unroll_length)
    codec = UnrollCodec(run_spec_of(config, level, spec, agent.state_size))
    recorded = []
    for _ in range(UNROLLS):
        unroll = collector.collect(0)
        recorded.append([bytes(buffer) for buffer in codec.encode(unroll)])
    environment.close()
    return recorded


def send(address: str, key_file: str, config: Config, tasks: range, recorded: list) -> None:
    """Actors without environments: each pushes recorded unrolls as fast as it gets credit."""
    torch.set_num_threads(1)
    level = environments.level_of(config)
    spec = environments.environment_spec(level)
    agent = make_agent(config.agent_name, spec)
    run_spec = run_spec_of(config, level, spec, agent.state_size)
    keys = curve.load(key_file) if key_file else None

    def one(task: int) -> None:
        client = EndpointClient(address, run_spec, task, NUM_ENVS, keys=keys)
        try:
            client.connect()
            while True:
                for buffers in recorded:
                    client.push(buffers, [])
        except RunEnded:
            client.close()

    threads = [threading.Thread(target=one, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def endpoint(
    config: Config,
    recorded: list,
    key_file: str,
    senders: int,
    secs: float,
    processes: int | None = None,
) -> dict:
    """Rates at which one endpoint takes recorded unrolls into batches.

    Args:
      config: names level and agent.
      recorded: of ``record``.
      key_file: of the run's keys; "" leaves the endpoint open.
      senders: simulated actors.
      secs: measured.
      processes: that the senders share, each a thread; None = one each.
    """
    level = environments.level_of(config)
    spec = environments.environment_spec(level)
    agent = make_agent(config.agent_name, spec)
    run_spec = run_spec_of(config, level, spec, agent.state_size)

    def make_batch() -> Batch:
        empty = empty_unroll(run_spec.environment, config.unroll_length, run_spec.state_size, 32)
        return Batch(Unroll(*(torch.from_numpy(array) for array in empty)), empty, [""] * 32)

    batches = BatchQueue(run_spec, 32, 2, make_batch)
    address = f"127.0.0.1:{_free_port()}"
    server = EndpointServer(
        address,
        run_spec,
        weights.layout(agent),
        batches,
        num_actors=senders,
        keys=curve.load(key_file) if key_file else None,
    )
    server.publish(0, weights.flatten(agent).numpy())
    context = multiprocessing.get_context("spawn")
    of_process = senders // (processes or senders)
    started = [
        context.Process(
            target=send,
            args=(address, key_file, config, range(first, first + of_process), recorded),
        )
        for first in range(0, senders, of_process)
    ]
    for process in started:
        process.start()
    while server.num_connected < senders:
        time.sleep(0.1)
    taken = 0
    stop = threading.Event()

    def take() -> None:
        nonlocal taken
        while not stop.is_set():
            try:
                if (batch := batches.get(0.2)) is not None:
                    taken += 32
                    batches.recycle(batch)
            except QueueClosed:
                return

    taker = threading.Thread(target=take)
    taker.start()
    time.sleep(1.0)
    begun, cpu, before, received = time.time(), time.process_time(), taken, server.bytes_received
    time.sleep(secs)
    wall, used = time.time() - begun, time.process_time() - cpu
    steps = (taken - before) * config.unroll_length
    rates = {
        "steps_per_sec": steps / wall,
        "bytes_per_sec": (server.bytes_received - received) / wall,
        "steps_per_core_sec": steps / used,
    }
    stop.set()
    taker.join()
    server.close()
    batches.close()
    for process in started:
        process.join(20)
        process.kill()
    return rates


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--secs", type=float, default=5.0, help="of each endpoint measurement")
    parser.add_argument("--senders", type=int, default=4, help="processes that push unrolls")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{datetime.date.today()}, {os.cpu_count()} cores, {_processor()}\n")

    print("| game | T | bytes per agent step | of those, frames |\n| --- | --- | --- | --- |")
    recorded: dict[tuple[str, int], list] = {}
    step_bytes = {}
    for game in GAMES:
        for length in (20, 100):
            config = _config(game, length)
            recorded[game, length] = messages_ = record(config)
            steps = NUM_ENVS * length * len(messages_)
            total = sum(len(buffer) for buffers in messages_ for buffer in buffers)
            frames = sum(len(buffer) for buffers in messages_ for buffer in buffers[1:])
            step_bytes[game, length] = total / steps
            print(f"| {game} | {length} | {total / steps:.0f} | {frames / steps:.0f} |")

    print("\n| agent | parameters | bytes per pull |\n| --- | --- | --- |")
    pull_bytes = {}
    spec = environments.environment_spec("PongNoFrameskip-v4")
    for name in AGENTS:
        flat = weights.flatten(make_agent(name, spec))
        pull_bytes[name] = flat.numel() * 4
        print(f"| {name} | {flat.numel():,} | {flat.numel() * 4:,} |")

    print(
        "\n| endpoint | senders | agent steps/s into batches | MB/s | steps/s of one core |\n"
        "| --- | --- | --- | --- | --- |"
    )
    per_core = 0.0
    with tempfile.TemporaryDirectory() as folder:
        key_file = f"{folder}/run.key"
        curve.make(key_file)
        for label, key in (("open", ""), ("CURVE", key_file)):
            config = _config("Pong", 20)
            rates = endpoint(config, recorded["Pong", 20], key, options.senders, options.secs)
            per_core = rates["steps_per_core_sec"]
            print(
                f"| {label} | {options.senders} | {rates['steps_per_sec']:,.0f} | "
                f"{rates['bytes_per_sec'] / 1e6:.1f} | {per_core:,.0f} |"
            )
    _plans(max(step_bytes.values()), pull_bytes, per_core)


def _plans(step_bytes: float, pull_bytes: dict[str, int], per_core: float) -> None:
    """What a link of 1 Gbit/s and one endpoint core of a learner hold, on paper."""
    print(
        f"\nPlans, for each learner: an actor of {NUM_ENVS} environments makes "
        f"{ACTOR_STEPS:.0f} steps/s, a step has {step_bytes:.0f} bytes, weights have "
        f"{UPDATES:.0f} versions a second, {RELAYED} actors share a relay, a link carries "
        "1 Gbit/s each way. Shares of the link, and of one core.\n"
    )
    print(
        "| run | agent | T | unrolls in | weights out, direct | weights out, by relays | core |\n"
        "| --- | --- | --- | --- | --- | --- | --- |"
    )
    for label, actors in (("8 learners, 45 actors each", 45), ("8 learners, 125 each", 125)):
        for name in ("ShallowConvNetAgent", "ResNetLSTMAgent"):
            for length in (20, 100):
                # An actor asks once an unroll, and gets what is newer; a relay asks for all of its.
                asks = ACTOR_STEPS / (NUM_ENVS * length)
                relays = int(np.ceil(actors / RELAYED))
                direct = actors * min(UPDATES, asks)
                relayed = relays * min(UPDATES, RELAYED * asks)
                out = [pulls * pull_bytes[name] / LINK_BYTES for pulls in (direct, relayed)]
                unrolls = actors * ACTOR_STEPS * step_bytes / LINK_BYTES
                core = actors * ACTOR_STEPS / per_core
                print(
                    f"| {label} | {name} | {length} | {unrolls:.0%} | {out[0]:.0%} | {out[1]:.0%} "
                    f"| {core:.0%} |"
                )


def _config(game: str, length: int) -> Config:
    return Config(
        level_name=f"{game}NoFrameskip-v4",
        agent_name="ShallowConvNetAgent",
        unroll_length=length,
        num_envs=NUM_ENVS,
    )


def _processor() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
