"""The part of the config tree that says how models write texts, and what of their distributions is stored. See `pipeline.config.schema`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.fields import Positive, Strict


class GenerationConfig(Strict):
    """How a model writes the texts of its task. What is not named here is as in the model's own generation_config.json."""

    beams: Annotated[int, Field(ge=1, le=64)] = 1
    """Beams of the search for the most probable text; 1: the most probable token at each step."""
    candidates: Annotated[int, Field(ge=1, le=64)] = 1
    """Texts that a teacher writes for each source, all of them stored: the best ones of its beams, or as many samples. A student writes one."""
    temperature: Positive | None = None
    """Tokens are drawn at random at this temperature; null: the search for the most probable text."""
    length_penalty: float = 1.0
    """Exponent of the length by which the score of a finished beam is divided; above 1 favours long texts."""
    no_repeat_ngram: Annotated[int, Field(ge=0, le=100)] | None = None
    """No sequence of so many tokens stands twice in a text; 0: no such limit; null: none for teachers, and for a student one of 4 where its texts on validation do not score lower with it."""
    repetition_penalty: Positive = 1.0
    """Above 1, tokens that were written are less likely to be written again."""
    language: str | None = None
    """Of speech-recognition: the language of the recordings, as Whisper names it (`en`, `german`). A model of several languages needs it, one of English alone does not read it."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings in JSON types, as they are part of the names of stored texts; `language` only where there is one."""
        own = self.model_dump(mode="json", exclude={"language"} if self.language is None else None)
        return {**own, "no_repeat_ngram": self.no_repeat_ngram or 0}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.temperature is None and self.candidates > self.beams:
            raise ValueError("`candidates` needs as many `beams`, or a `temperature`")
        if self.temperature is not None and self.beams > 1:
            raise ValueError("give `temperature` or `beams`, and not both")
        return self


class TokenTargetsConfig(Strict):
    """What is stored of a teacher's distribution at each position of a text, where the loss of a task that writes has `soft`."""

    form: Literal["top", "sampled"] = "top"
    """`top`: the most probable token ids, and all others as one event · `sampled`: as many ids drawn at random by their probability, each with the share of the draws that it had (2503.16870)."""
    ids: Annotated[int, Field(ge=1, le=1000)] = 8
    """Ids a position, or draws."""
