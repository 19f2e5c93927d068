"""Types of the config's values that several sections have, and the base of all sections.

No torch, Ray or MLflow: see `pipeline.config.schema`.
"""

from __future__ import annotations

import os
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

LONGEST_NAME = 64
Name = Annotated[str, StringConstraints(pattern=rf"^[A-Za-z0-9][A-Za-z0-9_.-]{{0,{LONGEST_NAME - 1}}}$")]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Epochs = Annotated[int, Field(ge=1, le=10_000)]
LocalPath = Annotated[str, AfterValidator(os.path.expanduser)]  # or what may stand for one: a hub id, a URL


class Strict(BaseModel):
    """Base of all sections: frozen, no unknown keys, no NaN or Inf, no silent type conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
