"""What the clients of `cluster` are asked for, checked before Dask starts anything."""

from numbers import Integral
from typing import Any

from dask.utils import format_bytes, parse_bytes, parse_timedelta
from distributed import Security
from distributed.comm.addressing import parse_address, parse_host_port
from distributed.comm.registry import get_backend

LEAST_MEMORY = 300_000_000
"""Bytes: what Python and the libraries take in a worker, and little more."""


def check_count(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number of at least `least`, nor None."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}={value!r} must be a whole number")
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}")


def checked_bytes(name: str, amount: Any) -> int:
    """As a number, once a worker can live on it."""
    try:
        n_bytes = int(amount if isinstance(amount, Integral) else parse_bytes(amount))
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"{name}={amount!r} must be bytes, as '4 GB'") from error
    if n_bytes < LEAST_MEMORY:
        least = format_bytes(LEAST_MEMORY)
        raise ValueError(f"{name}={amount!r} is too little: before its first row a worker takes nearly {least}")
    return n_bytes


def check_security(security: Any) -> None:
    """Refuse what holds no certificates."""
    if not (security is None or security is True or isinstance(security, Security)):
        raise TypeError(f"security={security!r} must be a distributed.Security, True for temporary ones, or None")


def check_address(address: Any) -> None:
    """Refuse what cannot be the address of a scheduler; `Client` would leave something behind that fails later."""
    if not isinstance(address, str):
        raise TypeError(f"address={address!r} must be a string, as 'tcp://scheduler:8786'")
    scheme, place = parse_address(address)
    try:
        get_backend(scheme)
    except ValueError as error:
        dashboard = ", not with that of the dashboard" if scheme.startswith("http") else ""
        raise ValueError(f"address={address!r} must begin with tcp:// or tls://{dashboard}") from error
    try:
        parse_host_port(place)
    except ValueError as error:
        raise ValueError(f"address={address!r} must name a host and a port, as 'tcp://scheduler:8786'") from error


def check_timeout(timeout: Any) -> None:
    """Refuse what Dask does not take for a time."""
    try:
        seconds = parse_timedelta(timeout)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"timeout={timeout!r} must be seconds, or a text as '1 minute'") from error
    if not seconds or not seconds > 0:
        raise ValueError(f"timeout={timeout!r} must be more than 0 s")
