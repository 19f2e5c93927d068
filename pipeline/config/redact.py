"""Secrets, by the name of their key or their place in a URL, kept out of params, artifacts and logs."""

from __future__ import annotations

import re
from typing import Any

USER_INFO = re.compile(r"(?<=://)[^/?#]*@")
SECRET_QUERY = re.compile(
    r"([?&](?:[^=&#\s]*(?:token|secret|password|passwd|credential|signature|key|auth)|sig)=)[^&#\s'\"]+",
    re.IGNORECASE,
)
USER_INFO_IN_TEXT = re.compile(r"(?<=://)[^/?#\s'\"]*@|(?<![\w/.])[^\s/:@'\"]+:[^\s/@'\"]+@(?=[\w\[])")
SECRET = re.compile(r"token(?!s_per_forward)|secret|password|(^|[._-])key($|[._-])|api_?key", re.IGNORECASE)


def redact(path: str, value: Any) -> Any:
    """`value` without secrets: neither by the name of its key nor inside URLs. Numbers are never secrets."""
    if isinstance(value, list | tuple):
        return [redact(path, item) for item in value]
    if not isinstance(value, str):
        return value
    if SECRET.search(path.rsplit(".", 1)[-1]):
        return "***"
    if "://" not in value:
        return value
    return SECRET_QUERY.sub(r"\1***", USER_INFO.sub("***@", value))


def redact_text(text: str) -> str:
    """`text`, a message to be printed or logged, without ``user:password@`` and without secrets in URLs' queries."""
    return SECRET_QUERY.sub(r"\1***", USER_INFO_IN_TEXT.sub("***@", text))
