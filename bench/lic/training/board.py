"""What TensorBoard shows of a run, for those who have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.files import BadInput, writing
from bench.lic.training.held_out import Quality


class Board:
    """Records loss, bpp, PSNR and learning rate in `folder`; does nothing where that is None.

    What was recorded of steps after `done`, by a run that died, is taken out.

    Raises:
        BadInput: the package is missing.
        CannotWrite: the folder cannot be made.
    """

    def __init__(self, folder: Path | None, done: int) -> None:
        self.writer: Any = None
        if folder is not None:
            writer = _summary_writer()
            with writing(folder):
                self.writer = writer(str(folder), purge_step=done + 1)

    def stepped(self, step: int, batch: Quality, rate: float) -> None:
        if self.writer is not None:
            self._record("train", step, batch)
            self.writer.add_scalar("train/lr", rate, step)

    def evaluated(self, step: int, quality: Quality) -> None:
        if self.writer is not None:
            self._record("held_out", step, quality)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _record(self, part: str, step: int, quality: Quality) -> None:
        for name, value in quality._asdict().items():
            self.writer.add_scalar(f"{part}/{name}", value, step)


def check_board(folder: str | None) -> None:
    """Find out before the training whether it can be recorded.

    Raises:
        BadInput: the package is missing.
    """
    if folder is not None:
        _summary_writer()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise BadInput(
            "--tensorboard needs a package that is missing: pip install tensorboard, or leave "
            "the option out"
        ) from None
    return SummaryWriter
