"""Directories with certificates, as Cloud Hypervisor's `tls_dir` wants them; made by trustme."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

__all__ = ["Authority"]


class Authority:
    """Issues certificates for both sides of a migration."""

    def __init__(self, key_type: trustme.KeyType = trustme.KeyType.ECDSA) -> None:
        self._key_type = key_type
        self._ca = trustme.CA(key_type=key_type)

    def directory(
        self,
        path: Path,
        *,
        host: str = "127.0.0.1",
        issuer: "Authority | None" = None,
        expired: bool = False,
        name: str = "one",
    ) -> Path:
        """Make `path` with the files of both sides: whoever has it trusts this authority, and shows
        what the `issuer` has issued (default: this one).
        """
        path.mkdir()
        self._ca.cert_pem.write_to_path(path / "ca-cert.pem")
        until = datetime.now(UTC) - timedelta(days=1) if expired else None
        for side in ("client", "server"):
            leaf = (issuer or self)._ca.issue_cert(
                host,
                common_name=f"{side} {name}",
                not_before=until - timedelta(days=30) if until is not None else None,
                not_after=until,
                key_type=self._key_type,
            )
            chain = b"".join(part.bytes() for part in leaf.cert_chain_pems)
            (path / f"{side}-cert.pem").write_bytes(chain)
            leaf.private_key_pem.write_to_path(path / f"{side}-key.pem")
        return path
