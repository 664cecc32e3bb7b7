"""What an image of the service says of itself inside its file, as XMP: the model, the class and the way it was explained.

`encode.encode_xmp` writes it; here it is declared, and read back. XMP: ISO 16684-1, one packet of RDF in XML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from PIL import Image

PNG_KEYWORD: Final = "XML:com.adobe.xmp"  # of the iTXt chunk that holds a PNG's XMP
NAMESPACE: Final = "urn:camserve:provenance:1#"
RDF: Final = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
XMP: Final = "http://ns.adobe.com/xap/1.0/"
_ITEMS: Final = f"{{{RDF}}}Seq/{{{RDF}}}li"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassProvenance:
    """A class that an image shows; of a contact sheet one for each row.

    Attributes:
        image: number of the image within the request, from 1.
        class_id: of the class.
        label: of the class.
        probability: of the class in that image.
        versus: label of the class contrasted with, or None.
    """

    image: int
    class_id: int
    label: str
    probability: float
    versus: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where an image comes from.

    Attributes:
        software: name and version of what made it.
        model: name of the model.
        version: of the model.
        digest: of its weights.
        method: None of an image of layers, which no method made; as `polarity` and `scale`.
        polarity: of the maps.
        scale: of the maps.
        request_id: None of an image that no request over HTTP asked for.
        layers: module paths; () for methods without.
        classes: in order of the rows.
        omitted: how many more classes there are, for which there was no room.
    """

    software: str
    model: str
    version: str
    digest: str
    method: str | None = None
    polarity: str | None = None
    scale: str | None = None
    request_id: str | None = None
    layers: tuple[str, ...] = ()
    classes: tuple[ClassProvenance, ...] = ()
    omitted: int = 0


def read_provenance(path: Path) -> Provenance | None:
    """What a PNG, JPEG or WebP says of its origin; None of a file that is no such image, or says nothing that we wrote.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        try:
            with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
                packet = image.info.get("xmp", b"")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # Pillow's, of a file that is not an image
            return None
    return decode_xmp(packet)


def decode_xmp(packet: bytes) -> Provenance | None:
    """The provenance in an XMP packet; None where there is none of ours."""
    try:
        text = packet.decode("utf-8")
        # A document type may declare entities that grow without bound; XMP has none.
        described = None if "<!DOCTYPE" in text else ET.fromstring(text).find(f".//{{{RDF}}}Description[@{{{NAMESPACE}}}model]")  # noqa: S314
        if described is None:
            return None
        own = _own_attributes(described)
        return Provenance(
            software=described.get(f"{{{XMP}}}CreatorTool", ""),
            model=own["model"],
            version=own["modelVersion"],
            digest=own["modelDigest"],
            method=own.get("method"),
            polarity=own.get("polarity"),
            scale=own.get("scale"),
            request_id=own.get("requestId"),
            layers=tuple(item.text or "" for item in described.iterfind(f"{{{NAMESPACE}}}layers/{_ITEMS}")),
            classes=tuple(_read_class(item) for item in described.iterfind(f"{{{NAMESPACE}}}classes/{_ITEMS}")),
            omitted=int(own.get("omitted", "0")),
        )
    except (ET.ParseError, UnicodeDecodeError, KeyError, ValueError):
        return None


def _read_class(item: ET.Element) -> ClassProvenance:
    own = _own_attributes(item)
    return ClassProvenance(
        image=int(own["image"]),
        class_id=int(own["classId"]),
        label=own["label"],
        probability=float(own["probability"]),
        versus=own.get("versus"),
    )


def _own_attributes(element: ET.Element) -> Mapping[str, str]:
    prefix = f"{{{NAMESPACE}}}"
    return {name.removeprefix(prefix): value for name, value in element.attrib.items() if name.startswith(prefix)}
