"""The file `.env` of a deployment's working directory: the one place that reads it.

A value stands for itself: `$` and braces have no meaning, so that a token with them in it stays what it is.
"""

from __future__ import annotations

import io
import os
import stat

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from .errors import ConfigError

__all__ = ["check_token_line", "env_text", "read_env_file", "values_in"]

_TOKEN = "WEB_API_TOKEN"


def read_env_file(path: str = ".env") -> dict[str, str]:
    """Returns what the file assigns, {} if there is no file; a name without `=` is left out.

    Raises:
        ConfigError: something is there from which settings should come and cannot: one sentence. A server must not
            start then, for it would serve with the defaults, without its token for one.

    Threads: any; does not wait, whatever the path names.
    """
    text = env_text(path) or ""
    check_token_line(text, path)
    return values_in(text)


def env_text(path: str = ".env") -> str | None:
    """Returns the file's text with its line ends as they are, None if there is no file.

    Raises:
        ConfigError: as `read_env_file`.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            return file.read().decode()
    except FileNotFoundError:
        if not os.path.lexists(path):
            return None
        reason = "it is a link to a file that does not exist"
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except OSError as error:
        reason = error.strerror or str(error)
    raise ConfigError(f"{path} cannot be read: {reason}")


def values_in(text: str) -> dict[str, str]:
    """Returns what a text in the format of `.env` assigns."""
    # Editors of Windows put a byte order mark before the first name.
    values = dotenv_values(stream=io.StringIO(text.removeprefix("\ufeff")), interpolate=False)
    return {name: value for name, value in values.items() if value is not None}


def check_token_line(text: str, path: str = ".env") -> None:
    """Refuses a text whose line for the token python-dotenv skips.

    Raises:
        ConfigError: as `read_env_file`.
    """
    if _TOKEN not in text:
        return
    bindings = list(parse_stream(io.StringIO(text.removeprefix("\ufeff"))))
    if any(binding.key == _TOKEN for binding in bindings):
        return
    for unread in (binding.original for binding in bindings if binding.error):
        if _TOKEN in unread.string.partition("#")[0]:
            raise ConfigError(
                f"{path} cannot be read: line {unread.line} names {_TOKEN} and is no assignment"
            )


def _open_at_once(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)  # the open of a FIFO waits for a writer otherwise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is not a file")
    return descriptor
