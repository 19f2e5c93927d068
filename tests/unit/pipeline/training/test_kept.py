"""What is kept between trainings: made once, and dropped where a training did without it."""

from __future__ import annotations

from pipeline.training.kept import Kept


def test_a_value_is_made_once_and_held_while_it_is_used() -> None:
    kept, made = Kept(), list[str]()

    def ask(key: str) -> str:
        def make() -> str:
            made.append(key)
            return key.upper()

        return kept.get(key, make)

    assert (ask("a"), ask("b"), ask("a")) == ("A", "B", "A")
    kept.drop_unused()
    assert ask("a") == "A"
    assert made == ["a", "b"]
    kept.drop_unused()
    assert ask("b") == "B"
    assert made == ["a", "b", "b"], "the training before did without it"
