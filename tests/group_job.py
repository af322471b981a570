"""What a rank does in the tests of the learner group: run by mpirun, tells in JSON.

mpirun -np 2 python tests/group_job.py same OUT      (or: different, split, agree, resume)
"""

import hashlib
import json
import pathlib
import sys

import torch

from impala_torch.agents import make_agent, weights
from impala_torch.algorithms import impala
from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError
from impala_torch.learning import group as groups
from impala_torch.learning.optimizers import TFRMSProp
from impala_torch.learning.training_state import TrainingState
from impala_torch.structures import (
    AgentInput,
    EnvironmentSpec,
    ObservationSpec,
    Unroll,
    empty_unroll,
    unroll_layout,
)

SPEC = EnvironmentSpec(ObservationSpec((4,), "float32", 1), 3)
CONFIG = Config(gradients_clipping=1.0, entropy_cost=0.01)
ROWS, BATCH = 6, 4


def random_batch(seed: int, size: int = BATCH) -> Unroll:
    generator = torch.Generator().manual_seed(seed)
    batch = Unroll(*(torch.from_numpy(field) for field in empty_unroll(SPEC, ROWS - 1, 0, size)))
    for field in (batch.observation, batch.reward, batch.policy_logits):
        field.copy_(torch.randn(field.shape, generator=generator))
    batch.action.copy_(torch.randint(0, 3, batch.action.shape, generator=generator))
    batch.done.copy_(torch.rand(batch.done.shape, generator=generator) < 0.2)
    return batch


def parts(batch: Unroll, split: int):
    """The batch's columns, shared out."""
    for part in range(split):
        columns = slice(part * BATCH // split, (part + 1) * BATCH // split)
        yield Unroll(
            *(
                getattr(batch, name)[:, columns] if before else getattr(batch, name)[columns]
                for name, (before, _, _) in unroll_layout(SPEC, ROWS - 1, 0).items()
            )
        )


def train(
    group: groups.Group,
    batches,
    updates: int,
    momentum: float = 0.5,
    split: int = 1,
    precision: str = "float32",
) -> torch.Tensor:
    """Updates an agent as the learner does, each batch in so many parts; returns flat weights."""
    torch.manual_seed(11 + group.rank)  # rank 0's weights must reach all
    agent = make_agent("MLPAgent", SPEC)
    parameters = list(agent.parameters())
    optimizer = TFRMSProp(parameters, lr=0.01, momentum=momentum)
    state = optimizer.state_dict()["state"]
    if group.rank == 0:  # as if restored from a checkpoint
        for entry in state.values():
            entry["mean_square"].fill_(0.7)
    with torch.no_grad():
        moments = [value for entry in state.values() for value in entry.values()]
        group.broadcast([*agent.state_dict().values(), *moments])
    optimizer = group.distributed(optimizer, agent.named_parameters(), split, precision)
    for update in range(updates):
        optimizer.zero_grad()
        for batch in parts(batches(update), split):
            inputs = AgentInput(
                batch.observation,
                batch.reward,
                batch.done,
                torch.cat([batch.initial_action[None], batch.action[:-1]]),
            )
            outputs, _ = agent(inputs, batch.agent_state)
            loss, _ = impala.impala_loss(outputs, batch, CONFIG)
            loss.backward()
        group.step(optimizer, parameters, CONFIG.gradients_clipping)
    return weights.flatten(agent)


def main(what: str, out: pathlib.Path) -> None:
    group = groups.join()
    result: dict = {"rank": group.rank, "size": group.size}
    if what in ("same", "different", "split", "half"):
        own = 0 if what == "same" else group.rank
        split = 4 if what == "split" else 1
        precision = "float16" if what == "half" else "float32"
        flat = train(
            group,
            lambda update: random_batch(1000 * own + update),
            100,
            split=split,
            precision=precision,
        )
        torch.save(flat, out / f"weights-{group.rank}.pt")
        result["sha256"] = hashlib.sha256(flat.numpy().tobytes()).hexdigest()
    elif what == "resume":
        # Rank 0 reads a checkpoint of another --momentum and --epsilon.
        agent = make_agent("MLPAgent", SPEC)
        state = TrainingState(agent, TFRMSProp(agent.parameters(), momentum=0.5, epsilon=0.01))
        state.restore(out / f"run-{group.rank}", Config(agent_name="MLPAgent"), group)
        flat = [tensor for entry in state.optimizer.state.values() for tensor in entry.values()]
        result["moments"] = len(flat)
        result["mean"] = float(flat[0].mean())
        result["epsilon"] = state.optimizer.param_groups[0]["epsilon"]
        result["frames"] = state.frames
    elif what == "agree":
        result["agreed"] = group.agree([group.rank, 5 - group.rank, 0])
        result["gathered"] = group.gather({"rank": group.rank, "text": "x" * (10 * group.rank)})
        try:
            group.check_same({"seed": 1, "batch_size": 2 + group.rank})
        except UserError as error:
            result["error"] = str(error)
        group.check_same({"seed": 1})
    (out / f"rank-{group.rank}.json").write_text(json.dumps(result))
    group.close()


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
