"""What travels: bytes of steps, an endpoint fed by many actors, weights to all of them.

Parts of ``bench.py``; recorded play and real sockets, of ``capacity.py``.
"""

import contextlib
import multiprocessing
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

import capacity
import numpy as np
import torch

from impala_torch import environments
from impala_torch.acting.player import Player
from impala_torch.acting.unrolls import UnrollCollector
from impala_torch.agents import make_agent, precision, weights
from impala_torch.endpoint import keys as curve
from impala_torch.endpoint.batches import BatchQueue
from impala_torch.endpoint.client import EndpointClient
from impala_torch.endpoint.codec import UnrollCodec
from impala_torch.endpoint.run_spec import run_spec_of
from impala_torch.endpoint.server import EndpointServer
from impala_torch.learning import checkpoint

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
ACTORS = 64
PROCESSES = 2  # that simulated actors share
NUM_ENVS = capacity.NUM_ENVS

Row = tuple[str, ...]


# --- 5: bytes of a step -------------------------------------------------------------------------


def steps(secs: float, played: dict[str, str]) -> Iterator[Row]:
    """Bytes of an agent step (all fields and frames, lossless) and the actor's time for coding.

    Args:
      secs: played of each game and T.
      played: game -> run directory whose newest checkpoint plays; else weights are random.
    """
    yield ("game", "policy", "T", "bytes a step", "bar", "coding, of the actor's time", "bar")
    torch.set_num_threads(1)
    for game in capacity.GAMES:
        for length in (20, 100):
            yield _steps(game, length, secs, played.get(game, ""))


def _steps(game: str, length: int, secs: float, logdir: str) -> Row:
    state = checkpoint.restore(pathlib.Path(logdir)) if logdir else None
    config = capacity._config(game, length)
    policy = "random weights"
    if state is not None:
        config = config.replace(agent_name=state["config"]["agent_name"])
        policy = f"after {state['frames'] / 1e6:.1f} M frames"
    level = environments.level_of(config)
    spec = environments.environment_spec(level)
    agent = make_agent(config.agent_name, spec, precision.resolve("auto", "cpu"))
    if state is not None:
        agent.load_state_dict(state["model"])
    agent = agent.for_acting()
    environment = environments.make_environment(level, NUM_ENVS, 1)
    collector = UnrollCollector(Player(agent, environment, 1), length)
    codec = UnrollCodec(run_spec_of(config, level, spec, agent.state_size))
    num_bytes = num_steps = 0
    coding = 0.0
    begun = time.perf_counter()
    while time.perf_counter() - begun < secs or not num_steps:
        unroll = collector.collect(0)
        coded = time.perf_counter()
        num_bytes += sum(len(buffer) for buffer in codec.encode(unroll))
        coding += time.perf_counter() - coded
        num_steps += NUM_ENVS * length
    share = coding / (time.perf_counter() - begun)
    environment.close()
    return (game, policy, str(length), f"{num_bytes / num_steps:.0f}", "200", f"{share:.1%}", "3%")


def pulls() -> Iterator[Row]:
    """Bytes of weights for one pull, and of a second's pulls of 45 actors.

    Directly an actor pulls once an unroll, and gets only what is newer; by relays of 12 actors
    each version comes once a relay.
    """
    yield ("agent", "type", "MB a pull", "MB/s, T = 20", "MB/s, T = 100", "by relays, T = 20")
    spec = environments.environment_spec("PongNoFrameskip-v4")
    for name in ("ShallowConvNetAgent", "ResNetLSTMAgent"):
        for dtype in ("float32", "bfloat16"):
            size = weights.pack(make_agent(name, spec), dtype).nbytes / 1e6
            direct = [45 * min(5.0, 700 / (NUM_ENVS * length)) * size for length in (20, 100)]
            relayed = np.ceil(45 / 12) * min(5.0, 12 * 700 / (NUM_ENVS * 20)) * size
            yield (
                name,
                dtype,
                f"{size:.1f}",
                f"{direct[0]:.0f}",
                f"{direct[1]:.0f}",
                f"{relayed:.0f}",
            )


# --- 6: the endpoint ----------------------------------------------------------------------------


def endpoint(secs: float) -> Iterator[Row]:
    """One endpoint fed by 64 simulated actors over TCP, all of them on this machine's cores."""
    yield ("encryption", "actors", "agent steps/s into batches", "bar", "MB/s", "steps/s of a core")
    config = capacity._config("Pong", 20)
    recorded = capacity.record(config)
    with tempfile.TemporaryDirectory() as folder:
        key_file = f"{folder}/run.key"
        curve.make(key_file)
        for label, key in (("none", ""), ("CURVE", key_file)):
            rates = capacity.endpoint(config, recorded, key, ACTORS, secs, PROCESSES)
            yield (
                label,
                str(ACTORS),
                f"{rates['steps_per_sec']:,.0f}",
                "60,000",
                f"{rates['bytes_per_sec'] / 1e6:.1f}",
                f"{rates['steps_per_core_sec']:,.0f}",
            )


# --- 7: weights ---------------------------------------------------------------------------------


def distribution(rounds: int) -> Iterator[Row]:
    """From an update to "each of 64 actors has its weights", ResNet-LSTM, all asking at once."""
    yield ("way", "type", "ms, median", "MB from the learner")
    for relayed in (False, True):
        for dtype in ("float32", "bfloat16"):
            secs, sent = _distribute(dtype, rounds, relayed)
            way = "one relay" if relayed else "direct"
            yield (way, dtype, f"{1000 * secs:.0f}", f"{sent / 1e6:.1f}")


def _distribute(dtype: str, rounds: int, relayed: bool) -> tuple[float, float]:
    """Median seconds of a round, and bytes that left the learner in it."""
    config = capacity._config("Pong", 20).replace(agent_name="ResNetLSTMAgent")
    level = environments.level_of(config)
    spec = environments.environment_spec(level)
    agent = make_agent(config.agent_name, spec)
    run_spec = run_spec_of(config, level, spec, agent.state_size)
    batches = BatchQueue(run_spec, 1, 1, lambda: None)  # type: ignore[arg-type,return-value]
    address = f"127.0.0.1:{capacity._free_port()}"
    context = multiprocessing.get_context("spawn")
    published, done = context.Semaphore(0), context.Barrier(ACTORS + 1)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        key_file = f"{folder}/run.key"
        curve.make(key_file)
        server = EndpointServer(
            address,
            run_spec,
            weights.layout(agent),
            batches,
            num_actors=ACTORS,
            weights_dtype=dtype,
            keys=curve.load(key_file),
        )
        packed = weights.pack(agent, dtype)
        server.publish(0, packed)
        relay = f"ipc://{folder}/set-0.ipc" if relayed else ""
        if relayed:
            _start_relay(stack, folder, address, key_file)
        share = ACTORS // PROCESSES
        actors = [
            context.Process(
                target=_pull_each,
                args=(
                    address,
                    key_file,
                    relay,
                    config,
                    range(n * share, (n + 1) * share),
                    published,
                    done,
                    rounds,
                ),
                daemon=True,
            )
            for n in range(PROCESSES)
        ]
        for actor in actors:
            actor.start()
        done.wait(120)  # all are welcomed and hold version 0
        sent, times = server.weights_sent, []
        for version in range(1, rounds + 1):
            begun = time.perf_counter()
            server.publish(version, weights.pack(agent, dtype))
            for _ in range(ACTORS):
                published.release()
            done.wait(120)
            times.append(time.perf_counter() - begun)
        sent = (server.weights_sent - sent) * packed.nbytes / rounds
        server.close()
        batches.close()
        for actor in actors:
            actor.join(20)
    return float(np.median(times)), sent


def _start_relay(stack: contextlib.ExitStack, folder: str, address: str, key_file: str) -> None:
    command = [sys.executable, "-m", "impala_torch.endpoint.relay", f"--key_file={key_file}"]
    command += [folder, f"0={address}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    stack.callback(process.wait, 20)
    stack.callback(process.terminate)


def _pull_each(address, key_file, relay, config, tasks, published, done, rounds) -> None:
    """Actors that do nothing but pull, one a thread, each version when they are told of it."""
    torch.set_num_threads(1)
    level = environments.level_of(config)
    spec = environments.environment_spec(level)
    agent = make_agent(config.agent_name, spec)
    run_spec = run_spec_of(config, level, spec, agent.state_size)

    def one(task: int) -> None:
        keys = None if relay else curve.load(key_file)
        client = EndpointClient(address, run_spec, task, NUM_ENVS, keys=keys, relay=relay)
        client.connect()
        version = -1
        for newest in range(rounds + 1):
            if newest:
                published.acquire()
            while version < newest:
                newer = client.pull(version)
                version = version if newer is None else newer[0]
            done.wait(120)
        client.close()

    threads = [threading.Thread(target=one, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
