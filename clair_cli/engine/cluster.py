"""Which engine a run asks for, and the connection to a Ray cluster that lasts as long as the run.

Nothing here imports ray unless the run asks for it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from importlib.util import find_spec

from clair_cli.engine.threads import available_threads
from clair_cli.errors import UsageError
from clair_cli.settings import Settings
from clair_cli.text import quoted

# What Ray reads from the environment when it starts: it sends no usage statistics, and leaves the
# numbers of GPUs that other libraries see alone.
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
# Variables by which a user says how Ray is to check who connects.
_AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_LOOPBACK = "127.0.0.1"
# Seconds in which the head of a cluster has to take a connection.
_PATIENCE = 10.0
STORES_SHARE = 0.25
"""Share of the machines' object stores for what one pass keeps for the next."""

# Signals whose handlers Ray replaces.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


def on_ray(settings: Settings) -> bool:
    """Whether the work is to run on a Ray cluster."""
    return settings.engine != "local"


def address_of(settings: Settings) -> str | None:
    """The address of the cluster: that of `--engine ray=ADDRESS`, else that of the variable
    RAY_ADDRESS; None for a cluster that is started on this machine for this run."""
    given = settings.engine.partition("=")[2]
    return given or os.environ.get("RAY_ADDRESS") or None


def check_available() -> None:
    """Raise if Ray is not installed; to be called before any work.

    Raises:
        UsageError: with the command that installs it.
    """
    if find_spec("ray") is None:
        raise UsageError(
            "--engine ray needs the library ray, which is not installed",
            hint="pip install 'clair-cli[ray]'",
        )


@contextlib.contextmanager
def cluster_for(settings: Settings) -> Iterator[None]:
    """Context in which the Ray cluster that the run asks for is connected; no more than the context
    where it asks for none, or where the caller has connected one.

    Raises:
        UsageError: Ray is not installed, or the cluster can't be reached or can't be used for these
            clients; see `check_nodes`.
    """
    if not on_ray(settings):
        yield
        return
    check_available()
    settings.progress("connecting", 0, 1)
    with _connected(settings):
        from clair_cli.engine.ray_nodes import check_nodes

        check_nodes(settings)
        settings.progress("connecting", 1, 1)
        yield


@contextlib.contextmanager
def _connected(settings: Settings) -> Iterator[None]:
    address = address_of(settings)
    if address is not None:
        _check_reachable(address)
    _prepare_environment(address)
    import ray

    if ray.is_initialized():
        yield
        return
    folder = None if address is not None else _short_folder()
    try:
        with _silent():
            _begin(settings, address, folder)
            yield
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _check_reachable(address: str) -> None:
    """Raise at once where nobody listens: Ray would try for minutes.

    Args:
        address: HOST:PORT; or "auto", Ray's word for a cluster that runs on this machine.

    Raises:
        UsageError: the host is not known, or there is no connection within a few seconds.
    """
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--engine ray: no Ray cluster at {quoted(address)} ({_first_line(error)})",
            hint="give HOST:PORT of a machine where ray start --head runs: docs/cluster.md",
        ) from None


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Context in which Ray does not print what its cluster says of lost machines: standard output
    is for results alone."""
    from ray._private import worker

    before = getattr(worker, "print_to_stdstream", None)
    vars(worker)["print_to_stdstream"] = lambda *args, **more: None
    try:
        yield
    finally:
        if before is not None:
            vars(worker)["print_to_stdstream"] = before


def _short_folder() -> str:
    """A new folder for the files of a cluster, whose sockets may have a path of 107 bytes: 90 of
    them are of Ray's names and of this folder's."""
    usual = tempfile.gettempdir()
    short = usual if len(os.fsencode(usual)) <= 17 or os.name != "posix" else "/tmp"
    return tempfile.mkdtemp(prefix="clair-ray-", dir=short)


def _prepare_environment(address: str | None) -> None:
    """Set the variables that nobody has set, for the life of this process: Ray reads some when it
    is imported, and never again. A cluster that is started here gets a random token, so that no
    other user of this machine can connect."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    decided = "ray" in sys.modules or any(name in os.environ for name in _AUTHENTICATION)
    if address is None and not decided:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _begin(settings: Settings, address: str | None, folder: str | None) -> None:
    """Connect to the cluster, or start one of this machine alone in a folder. Signals keep their
    handlers, which Ray would replace.

    Raises:
        UsageError: it can't be reached, or refuses the token.
    """
    import ray

    quiet = {"log_to_driver": False, "configure_logging": False}
    before = {n: signal.getsignal(n) for name in _SIGNALS if (n := getattr(signal, name, None))}
    try:
        if address is not None:
            ray.init(address=address, **quiet)
            return
        ray.init(
            address="local", num_cpus=settings.threads or available_threads(), _temp_dir=folder,
            _node_ip_address=_LOOPBACK, include_dashboard=False, **quiet,
        )  # fmt: skip
    except Exception as error:  # of many classes, with Ray's own words
        what = "a Ray cluster can't be started here"
        if address is not None:
            what = f"what answers at {quoted(address)} is no Ray cluster, or refuses the token"
        raise UsageError(
            f"--engine ray: {what} ({_first_line(error)})",
            hint="see docs/cluster.md for how to start one, and for its token",
        ) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
