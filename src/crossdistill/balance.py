"""Factors of methods from the gradients that reach the student's outputs, so that no weight has to be tuned."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crossdistill.backbones import Backbone
from crossdistill.distributed import mean_detached, processes
from crossdistill.errors import UserError
from crossdistill.methods.base import Method, TermGroup
from crossdistill.types import BackboneOutput

_MEMORY = 0.9
"""Weight of the past in the running mean of the measured ratios."""
_FIRST_FACTOR = 1e-3
"""Factor of the first step, which only measures: a term can be hundreds of times the task's."""
_MOST_PENDING = 16
"""Losses that may be added up for one backward pass."""
_EMBEDDING, _LOGITS = 0, 1


class _Measured(torch.autograd.Function):
    """Return a tensor unchanged; the backward pass adds the squared norm of its gradient to that of `probe`."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, probe: Tensor, row: int, column: int) -> Tensor:
        ctx.shape, ctx.row, ctx.column = probe.shape, row, column
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        square = gradient.float().square().sum()
        place = torch.arange(ctx.shape[0] * ctx.shape[1], device=gradient.device).view(ctx.shape)
        return gradient, torch.where(place == ctx.row * ctx.shape[1] + ctx.column, square, 0.0), None, None


class Balance(nn.Module):
    """Factors such that the gradient of each method has a stated size relative to that of the task.

    `targets` holds that size for each method, or None for a method whose factor is 1. Sizes are norms of the gradients
    with respect to the student's embedding and logits, read in the backward pass that is run anyway. The factor of a
    method is its target divided by the running geometric mean of sqrt(r_e^2 + r_l^2), with
    r_e and r_l its gradient relative to the task's on the embedding and on the logits. Buffers hold the mean, so a
    resumed run continues with it; over several processes the squared norms are averaged. (There, call `update` in all
    of them before a state is saved: it holds the last step then as well.) Only `loss.backward()` measures, not
    `torch.autograd.grad` or `backward(inputs=...)`. Up to 16 losses may be added up for one backward pass; more steps
    without one that measures give a warning.
    """

    targets: Tensor
    log_ratios: Tensor
    steps: Tensor

    def __init__(self, targets: Sequence[float | None]) -> None:
        super().__init__()
        self.register_buffer("targets", torch.tensor([target or 0.0 for target in targets]), persistent=False)
        self.register_buffer("log_ratios", torch.zeros(len(targets)))
        self.register_buffer("steps", torch.zeros(len(targets), dtype=torch.long))
        self._pending: list[tuple[Tensor, Tensor]] = []
        """Probes and factors of steps that were not measured yet; several where losses are added up or recomputed."""
        self._warned = False
        self.register_state_dict_pre_hook(_update_before_saving)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_forget_before_loading)  # type: ignore[no-untyped-call]

    def begin(self) -> tuple[Tensor, Tensor]:
        """Return the probe of a step, and the factors (M,) of the methods in it.

        Raises UserError in a copy of nn.DataParallel, which is thrown away with what it has measured.
        """
        if getattr(self, "_is_replica", False):
            raise UserError(
                "the balance cannot be measured in the copies of nn.DataParallel: use DistributedDataParallel, or give "
                "balance=None to use the weights as they are"
            )
        if not _in_backward():
            self.update()
        factors = self.factors()
        probe = torch.zeros(len(self.log_ratios) + 2, 2, device=factors.device, requires_grad=torch.is_grad_enabled())
        if probe.requires_grad:
            self._pending.append((probe, factors))
            self._notice_missed()
        return probe, factors

    def _notice_missed(self) -> None:
        """Warn where many steps in turn were not measured, and forget the first of them."""
        if len(self._pending) <= _MOST_PENDING:
            return
        del self._pending[0]
        if not self._warned:
            kept = [round(factor, 6) for factor in self.factors().tolist()]
            warnings.warn(
                f"more than {_MOST_PENDING} training steps without a backward pass that measures the balance, so the "
                f"factors of the methods stay at {kept}. It is measured in loss.backward(); torch.autograd.grad and "
                "backward(inputs=...) do not reach it. Call loss.backward(), or give balance=None to use the weights "
                "as they are",
                stacklevel=6,
            )
        self._warned = True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Balance":
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # A running mean in half precision would not move.
        for name, buffer in self.named_buffers(recurse=False):
            if buffer.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, before[name].to(buffer.device))
        return self

    def factors(self) -> Tensor:
        """Return the factors (M,) of the methods as measured so far."""
        known = self.targets * torch.exp(-self.log_ratios)
        factors = torch.where(self.steps > 0, known, torch.full_like(known, _FIRST_FACTOR))
        return torch.where(self.targets > 0, factors, torch.ones_like(factors))

    def __getstate__(self) -> dict[str, Any]:
        _update_before_saving(self)
        return super().__getstate__()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self) -> None:
        """Add what the last backward pass has measured to the running mean; does nothing where there was none."""
        measured = [place for place, (probe, _) in enumerate(self._pending) if probe.grad is not None]
        # Steps before the last measured one were only looked at.
        end = measured[-1] + 1 if measured else 0
        done, self._pending = self._pending[:end], self._pending[end:]
        for probe, factors in done:
            if probe.grad is not None:
                self._warned = False
                self._add(probe.grad, factors)

    def _add(self, squares: Tensor, factors: Tensor) -> None:
        sizes = mean_detached(squares).sqrt()
        task, classified, parts = sizes[0], sizes[1], sizes[2:] / factors.unsqueeze(1)
        # All losses on the logits reach the embedding as one sum; the task has the fraction that it has on the logits.
        on_embedding = classified[_EMBEDDING] * task[_LOGITS] / classified[_LOGITS]
        # A method that does not reach the embedding has no share of it, also where the task does not reach it either.
        reached = parts[:, _EMBEDDING] != 0
        of_embedding = torch.where(reached, parts[:, _EMBEDDING] / on_embedding, 0.0)
        both = of_embedding.square() + (parts[:, _LOGITS] / task[_LOGITS]).square()
        measured = both.log() / 2
        usable = measured.isfinite()
        memory = _MEMORY * (self.steps > 0).to(measured.dtype)
        self.log_ratios.copy_(torch.where(usable, torch.lerp(measured, self.log_ratios, memory), self.log_ratios))
        self.steps += usable.long()


def _in_backward() -> bool:
    """Return whether a backward pass is running: a step that it computes again has the factors of the first time."""
    return bool(torch._C._current_graph_task_id() != -1)


def _update_before_saving(balance: nn.Module, *_: Any) -> None:
    # In several processes it would wait for all of them, and often only one saves.
    if isinstance(balance, Balance) and processes() == 1:
        balance.update()


def _forget_before_loading(balance: nn.Module, *_: Any) -> None:
    assert isinstance(balance, Balance)
    balance._pending.clear()


def make_balance(
    balance: float | Literal["auto"] | None, student: Backbone, method: Method, task_weight: float
) -> Balance | None:
    """Make the balance of a method; None where no factor is measured.

    With "auto" each method has its own default. Raises UserError where a number is given and the gradients cannot be
    compared; "auto" then keeps the weights as they are.
    """
    if balance is None:
        return None
    groups = method.groups()
    # What has no weight has no gradient to measure.
    weighted = [any(method.weights[term] for term in group.terms) for group in groups]
    problems = [
        _problem(group, student, method, task_weight) if has else None
        for group, has in zip(groups, weighted, strict=True)
    ]
    if balance == "auto":
        targets = [None if bad else group.balance for bad, group in zip(problems, groups, strict=True)]
    elif any(problems):
        raise UserError(f"{next(filter(None, problems))}; leave balance out")
    else:
        targets = [balance for _ in problems]
    targets = [target if has else None for target, has in zip(targets, weighted, strict=True)]
    return Balance(targets) if any(targets) else None


def _problem(group: TermGroup, student: Backbone, method: Method, task_weight: float) -> str | None:
    if task_weight == 0:
        return "balance compares each method with the task, but task_weight is 0"
    reads = group.needs.student
    if not (reads.logits or reads.embedding):
        return f"balance compares gradients on the student's embedding and logits, but {group.method} reads neither"
    if not any(method.weights[term] for term in group.measured):
        return (
            "balance compares gradients on the student's embedding and logits, but no term of "
            f"{group.method} that has a weight reaches them"
        )
    if reads.embedding and not student.classifies_embedding:
        return (
            f"the logits of {student.spec.name!r} are not computed from its embedding, so balance cannot read the "
            "task's gradient on the embedding"
        )
    return None


def watch_task(output: BackboneOutput, probe: Tensor) -> BackboneOutput:
    """Return the output for the task's loss."""
    return output._replace(logits=_measured(output.require_logits(), probe, 0, _LOGITS))


def watch_classifier(tensor: Tensor, probe: Tensor, column: int) -> Tensor:
    """Return the embedding on its way into the classifier (column 0), or the logits before any loss (column 1)."""
    return _measured(tensor, probe, 1, column)


def watch_method(output: BackboneOutput, number: int, *, probe: Tensor) -> BackboneOutput:
    """Return the output for the method with a number."""
    logits = None if output.logits is None else _measured(output.logits, probe, 2 + number, _LOGITS)
    return output._replace(logits=logits, embedding=_measured(output.embedding, probe, 2 + number, _EMBEDDING))


def _measured(tensor: Tensor, probe: Tensor, row: int, column: int) -> Tensor:
    result: Tensor = _Measured.apply(tensor, probe, row, column)  # type: ignore[no-untyped-call]
    return result
