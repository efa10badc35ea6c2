"""The sections of learning: training a forecaster, and retraining it on a schedule."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pm.config.fields import Cron, Duration, Section, Share


class TrainSection(Section):
    """Training a forecaster."""

    context: Annotated[int, Field(ge=8)] = 168
    """Steps of history that one forecast sees one by one."""
    life: Annotated[int, Field(ge=8)] = 168
    """Steps that the summaries of an asset's life reach back; every forecast reads as many, where context is less."""
    condition_points: tuple[str, ...] = ()
    """Points that tell of the operating condition, in each of which the others are normalised; found when empty."""
    patch: Annotated[int, Field(ge=1)] = 12
    """Steps that one token of the transformer covers; divides context."""
    width: Annotated[int, Field(ge=8, multiple_of=8)] = 128
    """Width of the transformer."""
    layers: Annotated[int, Field(ge=1)] = 2
    """Layers of the transformer."""
    heads: Annotated[int, Field(ge=1)] = 4
    """Attention heads; divides width."""
    dropout: Share = 0.2
    """Dropout in training."""
    point_dropout: Share = 0.1
    """Share of points hidden at random in training, so that a lost sensor degrades a forecast and does not break it."""
    life_dropout: Share = 0.1
    """Share of windows shown in training without the summaries of their asset's life, so that neither is relied on
    alone; 0 where records run from new to failure and the summaries tell most."""
    life_pieces: Annotated[int, Field(ge=1)] = 4
    """Pieces that each summary of a life is cut into at its quantiles; more tell levels finer and cost time."""
    members: Annotated[int, Field(ge=1, le=16)] = 1
    """Networks trained from different seeds, whose answers are averaged; each takes its share of max_minutes."""
    epochs: Annotated[int, Field(ge=1)] = 120
    """Passes over the history at most; training stops earlier when the validation slice no longer improves."""
    patience: Annotated[int, Field(ge=1)] = 20
    """Epochs without improvement before training stops."""
    max_minutes: Annotated[float, Field(gt=0.0)] = 20.0
    """Minutes of training at most; the best weights so far are kept."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Windows in one optimiser step."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Parts that a batch is computed in, where memory is short."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 3e-3
    """Peak learning rate of AdamW."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.02
    """Weight decay of AdamW."""
    life_weight: Annotated[float, Field(ge=0.0)] = 2.0
    """Weight of remaining life in the loss; raise it where remaining life matters more than the hazard."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic of the forward pass; auto takes what the device is made for and says so."""
    onnx: bool = True
    """Keep the network as ONNX beside its weights, for ONNX Runtime; takes some ten seconds after training."""
    device: str = "auto"
    """auto, cpu, or a torch device like cuda:0."""
    tf32: bool = True
    """Let fp32 matrix products of a GPU use TF32, which keeps ten bits of the fraction."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the network for training; auto does so on a GPU, where it pays."""
    memory: Literal["auto", "resident", "mapped"] = "auto"
    """Where features are kept: on the device, or mapped from a file; auto maps what half of the memory cannot hold."""
    snapshot: Duration = timedelta(minutes=5)
    """Between two saves of training's own state, from which it goes on after a crash (pm train --resume)."""
    schedule_features: Literal["off", "coarse", "exact"] = "coarse"
    """How finely time since maintenance is seen: exact age can encode a maintenance plan instead of wear."""
    rul_cap: Annotated[int, Field(ge=1)] = 125
    """Remaining life is learned and told up to so many steps."""
    hold_out: Share = 0.3
    """Share of assets kept out of training altogether, for scoring."""
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.25
    """Share of the other assets that stops, calibrates and sets thresholds, on later time where the record allows."""
    seed: int = 0
    """Seed of splits, initial weights and batches."""

    @model_validator(mode="after")
    def _whole_parts(self) -> Self:
        if self.context % self.patch:
            raise ValueError(
                f"context {self.context} is not a whole number of patches of {self.patch}; change one of them"
            )
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} cannot be divided among {self.heads} heads of even size; change one of them"
            )
        return self


class RetrainSection(Section):
    """Retraining on a schedule: a challenger against the champion."""

    enabled: bool = True
    """Retrain on the schedule below."""
    cron: Cron = "0 3 * * sun"
    """When to retrain, as a cron line in plant time."""
    history: Duration = timedelta(days=730)
    """How much history the challenger learns from."""
    judge: Duration = timedelta(days=30)
    """Length of the latest window, seen by neither in training, on which both are judged."""
    min_failures: Annotated[int, Field(ge=1)] = 3
    """Failures that the judging window must hold; with fewer the champion stays."""
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.9
    """Bootstrap confidence over assets that the challenger is better, needed to promote it."""
    warm: bool = False
    """The challenger goes on from the champion with what came since, which takes seconds: for frequent runs."""
