"""The first bytes of formats that are not accepted, by catalogue id and name: each must be told by its magic and refused."""

from __future__ import annotations

import struct

OTHER_FORMATS: dict[str, bytes] = {
    "H81 bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 58, 0, 0, 54, 40, 1, 1, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(4),
    "H82 bmp bomb": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 58, 0, 0, 54, 40, 30000, 30000, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(4),
    "H83 ico": b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0" + bytes(8),
    "H84 tiff little": b"II*\0\x08\0\0\0\0\0" + bytes(4),
    "H84 tiff big": b"MM\0*\0\0\0\x08\0\0" + bytes(4),
    "H85 bigtiff": b"II+\0\x08\0\0\0\x10" + bytes(7),
    "H88 avif": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
    "H89 avif sequence": b"\0\0\0\x1cftypavis\0\0\0\0avisavifmiaf",
    "H90 heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "H91 jpeg xl": b"\xff\x0a\xfa\x1f\x41\x91\x08\x06\x01\0",
    "H91 jpeg xl container": b"\0\0\0\x0cJXL \r\n\x87\n",
    "H91 jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    "H91 jpeg 2000 stream": b"\xff\x4f\xff\x51\0\x2f",
    "H92 psd": b"8BPS\0\1" + bytes(20),
    "H93 eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n",
    "H93 eps with dos header": b"\xc5\xd0\xd3\xc6\x1e\0\0\0" + bytes(22),
    "H94 pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "H95 svg": b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
    "H96 icns": b"icns\0\0\0\x08",
    "H96 sgi": b"\x01\xda\0\1\0\3",
    "H96 pcx": b"\x0a\5\1\x08" + bytes(124),
    "H96 dds": b"DDS \x7c\0\0\0" + bytes(120),
    "H96 fits": b"SIMPLE  =                    T",
    "H96 xpm": b"/* XPM */\nstatic char *x[] = {",
    "H96 qoi": b"qoif\0\0\0\1\0\0\0\1\3\0",
    "H97 ppm": b"P6\n1000000000 1000000000\n255\n",
    "H98 raw": b"II*\0\x10\0\0\0CR\2\0",
    "H99 numpy": b"\x93NUMPY\1\0v\0{'descr': '|u1'}",
    "H99 pickle": b"\x80\x04\x95\x0b\0\0\0",
    "H104 mng": b"\x8aMNG\r\n\x1a\n",
    "H104 jng": b"\x8bJNG\r\n\x1a\n",
    "H105 byte order mark": b"\xef\xbb\xbf\xff\xd8\xff\xe0",
    "H105 leading space": b" \xff\xd8\xff\xe0",
    "H105 base64": b"/9j/4AAQSkZJRgABAQAAAQABAAD",
    "H67 riff that is no webp": b"RIFF\x24\0\0\0WAVEfmt ",
}
