"""The part of the config tree that says which parameters train beside frozen ones. See `pipeline.config.schema`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.fields import Count, Positive, Share, Strict


class LoraConfig(Strict):
    """Low-rank adapters (LoRA, 2106.09685): the model's weights stay, and for each linear map the product of two small matrices is added to it.
    Heads and a pooler, which may start from nothing, train whole. Saved folders have the sums: plain weights, without adapters."""

    rank: Count = 16
    """Columns of the two matrices."""
    alpha: Positive = 32
    """Their product counts alpha ÷ rank."""
    dropout: Share = 0
    """Dropout of what the adapters read."""
    modules: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of the linear maps that get adapters, or ends of them, e.g. `[q_proj, v_proj]`; null: all but the one to the vocabulary."""
