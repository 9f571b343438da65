"""One TLS context per trust setting: loading the CA bundle costs 20 ms of CPU and 0.7 MB, for each connection."""

from __future__ import annotations

import os
import ssl
from typing import Any

from requests.adapters import DEFAULT_CA_BUNDLE_PATH
from urllib3.util.ssl_ import create_urllib3_context

from ..fork_safe import ForkSafeLock
from .sockets import WatchedTLSSocket

__all__ = ["context_for", "context_for_proxy", "renewed"]

_Paths = tuple[Any, Any, Any]  # of the authorities, the client certificate and its key

_KEPT = 100  # contexts; a client with more trust settings than that starts again


_contexts: dict[_Paths, tuple[Any, ssl.SSLContext]] = {}  # guarded by _lock; with the state of the files
_lock = ForkSafeLock()


def context_for(verify: Any, cert: Any) -> ssl.SSLContext:
    """The process's context for what `requests` calls `verify` and `cert`, loaded once.

    `renewed` notices when the files behind it are replaced.

    Args:
        verify: True for the default bundle, False for no verification, or the path of a file or folder of CAs.
        cert: None, the path of a client certificate with its key, or the paths of both.

    Raises:
        OSError: a file does not exist or is no certificate; in the words of `requests` where it has some.

    Threads: any; the context itself may be used by any number of connections at once.
    """
    authorities = DEFAULT_CA_BUNDLE_PATH if verify is True else verify or None
    cert_file, key_file = (cert, None) if not cert or isinstance(cert, str) else cert
    paths = (authorities, cert_file, key_file)
    loaded = _contexts.get(paths)
    return _of_now(paths) if loaded is None else loaded[1]


def renewed(context: ssl.SSLContext) -> ssl.SSLContext:
    """The context for a new connection: the given one of ours, or one with the files as they are now.

    Deployments renew certificates in place. Connections that are open go on with what they were made with.

    Raises:
        OSError: as context_for.
    """
    for paths, (_, known) in list(_contexts.items()):
        if known is context:
            return _of_now(paths)
    return context


def _of_now(paths: _Paths) -> ssl.SSLContext:
    authorities, cert_file, key_file = paths
    state = (
        _state_of(authorities, "Could not find a suitable TLS CA certificate bundle, invalid path: {}"),
        _state_of(cert_file, "Could not find the TLS certificate file, invalid path: {}"),
        _state_of(key_file, "Could not find the TLS key file, invalid path: {}"),
    )
    with _lock:
        loaded = _contexts.get(paths)
        if loaded is None or loaded[0] != state:
            if len(_contexts) >= _KEPT:
                _contexts.clear()
            loaded = _contexts[paths] = (state, _load(*paths))
        return loaded[1]


def context_for_proxy(context: ssl.SSLContext) -> ssl.SSLContext:
    """A context that trusts as the given one of ours does, but shows no client certificate."""
    for (authorities, cert_file, _), (_, known) in list(_contexts.items()):
        if known is context and cert_file:
            return context_for(authorities or False, None)
    return context


def _state_of(path: Any, complaint: str) -> tuple[int, ...] | None:
    """What changes when the file is replaced: deployments renew certificates in place."""
    if not path:
        return None
    try:
        state = os.stat(path)
    except OSError:
        raise OSError(complaint.format(path)) from None
    return (state.st_mtime_ns, state.st_size, state.st_ino)


def _load(authorities: Any, cert_file: Any, key_file: Any) -> ssl.SSLContext:
    context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED if authorities else ssl.CERT_NONE)
    context.sslsocket_class = WatchedTLSSocket
    try:
        if authorities:
            is_folder = os.path.isdir(authorities)
            context.load_verify_locations(**{"capath" if is_folder else "cafile": authorities})
        if cert_file:
            context.load_cert_chain(cert_file, key_file, password="")  # None would ask the terminal
    except ssl.SSLError as exc:
        raise OSError(f"cannot use the TLS files {authorities}, {cert_file}, {key_file}: {exc}") from exc
    return context
