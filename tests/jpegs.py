"""JPEGs with damage that decoders disagree about."""


def without_first_segment(jpeg: bytes) -> bytes:
    """The same JPEG, whose first segment claims no length: libjpeg reads it whole, DALI refuses it and may crash."""
    after = 4 + int.from_bytes(jpeg[4:6], "big") - 2
    return jpeg[:4] + bytes(2) + jpeg[2 + 2 + int.from_bytes(jpeg[4:6], "big") :] if after else jpeg
