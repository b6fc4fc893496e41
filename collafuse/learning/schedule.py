"""The learning rate of a training, step by step."""

from __future__ import annotations

import math

from ..config import TrainingSettings

FINAL_LEARNING_RATE = 0.01


def learning_rate_at(step: int, settings: TrainingSettings) -> float:
    """Linear warm-up, then a cosine down to 1 % at the last step."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return settings.learning_rate * (FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * cosine)


def all_warm_up(settings: TrainingSettings) -> str:
    """What to say of a training whose learning rate rises to the end."""
    reached = learning_rate_at(settings.steps - 1, settings)
    return (
        f"training.warmup_steps={settings.warmup_steps} for a training of {settings.steps} steps: the learning rate "
        f"rises to the end, to {reached:g} of {settings.learning_rate:g}; take fewer warmup_steps, or more steps."
    )
