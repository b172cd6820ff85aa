"""Metrics of training: metrics.jsonl (one object a step) and TensorBoard events.

Losses come as tensors and stay on their device until many are fetched at once: asking a GPU for one number waits for
all that it has to do.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcrystal.parallel.distributed import DistributedContext
from fastcrystal.utils.files import write_lines


class MetricLogger:
    """metrics.jsonl and TensorBoard events of a run folder.

    Parameters
    ----------
    run : Path
    step : int
        Optimizer steps done; lines after it, of a run that died later, are dropped.
    ranks : DistributedContext
        Losses are averaged over all processes; the leading one writes.
    """

    def __init__(self, run: Path, step: int, ranks: DistributedContext) -> None:
        self.run, self.ranks = run, ranks
        self._waiting: list[tuple[dict[str, Any], Tensor]] = []
        if not ranks.is_main_process:
            return
        from torch.utils.tensorboard import SummaryWriter

        path = run / "metrics.jsonl"
        _cut(path, step)
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step)

    def __enter__(self) -> MetricLogger:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.flush()
        if self.ranks.is_main_process:
            self._file.close()
            self._board.close()

    def add(self, step: int, loss: Tensor, lr: float) -> None:
        """Note a step; `loss` is a scalar, on any device."""
        self._waiting.append(({"step": step, "lr": lr}, loss.detach()))

    def flush(self, **last: float) -> list[int]:
        """Write what is waiting; `last` are further values of the last step.

        Returns
        -------
        list of int
            Steps whose loss was not finite: they changed nothing, and have `null` for a loss.
        """
        if not self._waiting:
            return []
        losses = self.ranks.all_reduce_mean(torch.stack([loss for _, loss in self._waiting])).tolist()
        bad = []
        for k, ((record, _), loss) in enumerate(zip(self._waiting, losses, strict=True)):
            finite = math.isfinite(loss)
            if not finite:
                bad.append(record["step"])
            values = {"step": record["step"], "loss": loss if finite else None, "lr": record["lr"]}
            self._write({**values, **(last if k == len(losses) - 1 else {})})
        self._waiting.clear()
        if self.ranks.is_main_process:
            self._file.flush()
        return bad

    def _write(self, record: dict[str, Any]) -> None:
        if not self.ranks.is_main_process:
            return
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        for name, value in record.items():
            if name != "step" and value is not None:
                self._board.add_scalar(name, value, record["step"])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl; a kill may have cut the last."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def _cut(path: Path, step: int) -> None:
    """Drop the lines after `step`, which training is about to write again."""
    if path.is_file():
        write_lines(path, [json.dumps(line) for line in read_metrics(path) if line["step"] <= step])
