"""Optimizers whose state is there from the start, and the learning rate's schedule."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from impala_torch.flags.config import Config


class _Ready(torch.optim.Optimizer):
    """An optimizer that makes its state at once: so it can be broadcast and saved at any time.

    What a run goes on with are a checkpoint's moments and its own hyperparameters.
    """

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the moments that this optimizer has too; hyperparameters stay as they are.

        So flags changed for a resumed run are followed, and the state's entries are the same on
        every rank, whoever read the checkpoint.

        Raises:
          ValueError: it is of other parameters.
        """
        params = [param for group in self.param_groups for param in group["params"]]
        saved = state_dict["state"]
        if len(saved) != len(params):
            raise ValueError(f"its optimizer has {len(saved)} parameters instead of {len(params)}")
        for index, param in enumerate(params):
            for name, moment in self.state[param].items():
                theirs = saved[index].get(name, moment)
                if theirs.shape != moment.shape:
                    raise ValueError(
                        f"its {name} of parameter {index} has shape {tuple(theirs.shape)} instead "
                        f"of {tuple(moment.shape)}"
                    )
                moment.copy_(theirs)


class TFRMSProp(_Ready):
    """RMSProp as ``tf.train.RMSPropOptimizer`` has it, which published hyperparameters mean.

    Epsilon is inside the root and the mean square starts at one:

        ms  <- decay ms + (1 - decay) g^2
        mom <- momentum mom + lr g / sqrt(ms + epsilon)
        p   <- p - mom
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.00048,
        decay: float = 0.99,
        momentum: float = 0.0,
        epsilon: float = 0.1,
    ) -> None:
        defaults = {"lr": lr, "decay": decay, "momentum": momentum, "epsilon": epsilon}
        super().__init__(params, defaults)
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                state["mean_square"] = torch.ones_like(param)
                if group["momentum"]:
                    state["momentum"] = torch.zeros_like(param)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                self._update(group, params, [param.grad for param in params])
        return loss

    def _update(
        self, group: dict[str, Any], params: list[torch.Tensor], grads: list[torch.Tensor]
    ) -> None:
        mean_squares = [self.state[param]["mean_square"] for param in params]
        torch._foreach_mul_(mean_squares, group["decay"])
        torch._foreach_addcmul_(mean_squares, grads, grads, 1 - group["decay"])
        roots = torch._foreach_add(mean_squares, group["epsilon"])
        torch._foreach_sqrt_(roots)
        if group["momentum"]:
            moments = [self.state[param]["momentum"] for param in params]
            torch._foreach_mul_(moments, group["momentum"])
            torch._foreach_addcdiv_(moments, grads, roots, group["lr"])
            torch._foreach_sub_(params, moments)
        else:
            torch._foreach_addcdiv_(params, grads, roots, -group["lr"])


class Adam(torch.optim.Adam, _Ready):
    """PyTorch's Adam, with its state from the start."""

    def __init__(self, params: Any, lr: float = 0.0003, eps: float = 1e-5, **others: Any) -> None:
        super().__init__(params, lr=lr, eps=eps, **others)
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param] = {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(param),
                    "exp_avg_sq": torch.zeros_like(param),
                }

    load_state_dict = _Ready.load_state_dict


def make(name: str, parameters: Sequence[torch.nn.Parameter], config: Config) -> _Ready:
    """The optimizer that an algorithm names, with the hyperparameters of the flags."""
    if name == "adam":
        return Adam(parameters, lr=config.learning_rate, eps=config.epsilon)
    if name == "rmsprop":
        return TFRMSProp(
            parameters,
            lr=config.learning_rate,
            decay=config.decay,
            momentum=config.momentum,
            epsilon=config.epsilon,
        )
    raise ValueError(f"'{name}' is no optimizer")


def linear_decay(start: float, frames: int, total_frames: int) -> float:
    """A learning rate or a cost at ``frames`` of ``total_frames``: linear from ``start`` to 0."""
    return start * max(0.0, 1.0 - frames / total_frames)
