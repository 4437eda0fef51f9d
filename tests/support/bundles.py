"""Bundles as bytes in one piece, as tests make and read them."""

from collections.abc import Iterable

from cmf_protocol.bundles import read_bundle, write_bundle


def bundle_of(segments: Iterable[bytes]) -> bytes:
    """Return a bundle of these segments."""
    return b"".join(write_bundle(segments))


def segments_in(bundle: bytes) -> list[bytes]:
    """Return the segments of a bundle; raise what reading it raises."""
    return list(read_bundle([bundle]))
