"""One readable loop: batch -> forward -> backward -> measure -> gate -> step -> record."""

from hpcstab.training.trainer import Trainer, TrainingResult

__all__ = ["Trainer", "TrainingResult"]
