"""OpenSSL's errors in words that say which side dislikes what.

`reason` names come from OpenSSL's sslerr.h. Those with ALERT were sent by the peer: it is the one
that was not content (RFC 8446, section 6.2).
"""

import ssl

__all__ = ["in_words"]

_NOT_TLS = "the peer does not speak TLS: its first bytes are no TLS record"
_NO_TLS_13 = "the peer does not speak TLS 1.3"
_REASONS = {
    "WRONG_VERSION_NUMBER": _NOT_TLS,
    "HTTP_REQUEST": _NOT_TLS,
    "HTTPS_PROXY_REQUEST": _NOT_TLS,
    "PACKET_LENGTH_TOO_LONG": _NOT_TLS,
    "UNSUPPORTED_PROTOCOL": _NO_TLS_13,
    "TLSV1_ALERT_PROTOCOL_VERSION": _NO_TLS_13,
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the peer shows no certificate, and has to",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer demands a certificate of this side",
    "TLSV1_ALERT_UNKNOWN_CA": "the peer does not know the authority of this side's certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the peer says that this side's certificate has expired",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the peer does not accept this side's certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the peer does not accept this side's certificate (it may have "
    "been made for another host)",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "the peer says that this side's certificate is for "
    "another purpose",
    "SSLV3_ALERT_BAD_RECORD_MAC": "the peer received bytes that this side has not sent",
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC": "bytes came that the peer has not sent",
}


def in_words(error: ssl.SSLError) -> str:
    """What is wrong, without the file and line in OpenSSL that `str` would give."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate is not accepted: {error.verify_message}"
    reason = error.reason or error.strerror or str(error)
    return _REASONS.get(reason) or f"TLS: {reason.replace('_', ' ').lower()}"
