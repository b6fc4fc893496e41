"""The bundle: one .onnx file with a client's denoiser, all a device needs to finish images.

File format (ONNX, version 1 of ours):

    inputs    x           float32 [N, C, H, W]   images at level sigma
              sigma       float32 [N]            one level per image
              labels      float32 [N, W]         condition: K labels, T numbers of a text (none without), and the
                                                 "no condition" flag; W = K + T + 1. Where the metadata say
                                                 blank_trained false, the flag is never 1 and neither
                                                 labels nor text are left out, where K and T are not 0
    output    x0_hat      float32 [N, C, H, W]   the clean images, estimated; preconditioning is inside

    With graph "whole" instead of "step" the file holds the whole finishing, for runtimes other than ours: inputs
    x, at the level sigma_max, and labels as above; output pixels, uint8 [N, H, W, C], finished as the defaults say.

    precision "fp32", "fp16" (matrices and kernels stored in half, computed in fp32) or "int8" (convolutions
    between QuantizeLinear and DequantizeLinear, all but the first and the last)

    metadata_props: ``collafuse`` (a JSON object, see Bundle) and ``collafuse_sha256`` (64 hexadecimal digits:
    SHA-256 of the whole file with these digits replaced by zeros); a signed one ``collafuse_signature`` besides,
    which the digest covers (see Signature)

MUST NOT hold: external data, custom operators or domains, functions, loops or branches. Limits: 512 MiB,
1 MiB of metadata. The known-answer test inside is run whenever the bundle is loaded. A bundle encodes its
site's images: it is private to the site's devices unless the site says otherwise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import knownanswer, onnxwire, signing
from .conditioning import MAX_GUIDANCE, ConditionSpace, TextSpace
from .errors import FileFormatError
from .knownanswer import KnownAnswer
from .metadata import Fields, parse_json, shown, shown_names
from .noise import SIGMA_MAX, SIGMA_MIN
from .pictures import MAX_CHANNELS, MAX_SIDE
from .samplers import STEPS
from .texts import read_text_space, text_fields

KIND = "bundle"
VERSION = 1
MAX_BUNDLE_BYTES = 512 << 20
MAX_METADATA_BYTES = 1 << 20
MAX_STEPS = 1000
METADATA_KEY = "collafuse"
DIGEST_KEY = "collafuse_sha256"
SIGNATURE_KEY = "collafuse_signature"
NO_DIGEST = "0" * 64
INPUTS = ("x", "sigma", "labels")
OUTPUT = "x0_hat"
WHOLE_INPUTS = ("x", "labels")
PIXELS = "pixels"
GRAPHS = {"step": 1.0, "whole": 127.0}
"""What a graph may be, with the largest tolerance of its known answer: half the range of its output."""
FLOAT32, UINT8, INT8, INT32, INT64, BOOL, FLOAT16 = 1, 2, 3, 6, 7, 9, 10
"""Element types by their ONNX numbers."""
PRECISIONS = {
    "fp32": frozenset({FLOAT32, INT32, INT64, BOOL}),
    "fp16": frozenset({FLOAT32, INT32, INT64, BOOL, FLOAT16}),
    "int8": frozenset({FLOAT32, INT32, INT64, BOOL, UINT8, INT8}),
}
"""Each precision with the element types that its graph may hold."""
MAX_PSNR_DB = 100.0
"""Stands for "not one grey level apart"."""
NO_LABEL = "no label"
"""Stands for the images that show none, where a loss names a label."""

OPERATORS = frozenset(
    "Add And AveragePool Cast Clip Concat Constant ConstantOfShape Conv Cos DequantizeLinear Div Equal Erf Exp "
    "Expand Flatten Gather Gemm GlobalAveragePool Identity InstanceNormalization LayerNormalization Log MatMul "
    "Max Min Mul Neg Pad Pow QuantizeLinear Range ReduceMax ReduceMean ReduceSum Reciprocal Relu Reshape Resize Round "
    "Shape Sigmoid Sin Slice Softmax Split Sqrt Squeeze Sub Tanh Tile Transpose Unsqueeze Where".split()
)
"""The operators a bundle may use; all of them are plain arithmetic on tensors."""


@dataclass(frozen=True)
class Loss:
    """What a precision below fp32 costs: how far finished images lie from those of the fp32 graph.

    images: how many were compared. Differences in grey levels of 8-bit images; psnr_db is their peak
    signal-to-noise ratio, at most MAX_PSNR_DB. worst_psnr_db: the lowest such ratio over the images of one label,
    worst_label, or over those of none, NO_LABEL.
    """

    images: int
    mean_grey_levels: float
    max_grey_levels: int
    psnr_db: float
    worst_label: str
    worst_psnr_db: float


@dataclass(frozen=True)
class BundleInfo:
    """What a bundle says of itself.

    sigma_max: the highest level it was trained for, where it takes over from the server. sampler, steps,
    sigma_low and guidance are defaults that a device may override where the graph is one step. loss: None where
    the precision is fp32. text: what text it takes, if any. labels_kept, text_kept: whether the site keeps its labels,
    its text, from the server; they are then chosen at the device and never sent. blank_trained: whether "no condition"
    was ever trained, which guidance and images of which nothing is said need.
    """

    client: str
    image_shape: tuple[int, int, int]
    label_names: tuple[str, ...]
    sigma_min: float
    sigma_max: float
    sampler: str
    steps: int
    sigma_low: float
    guidance: float
    blank_trained: bool
    precision: str
    opset: int
    provenance: dict[str, str]
    known_answer: KnownAnswer
    loss: Loss | None = None
    graph: str = "step"
    labels_kept: bool = False
    text: TextSpace | None = None
    text_kept: bool = False

    @property
    def space(self) -> ConditionSpace:
        """What a condition's numbers mean."""
        return ConditionSpace(self.label_names, self.text)

    def to_json(self) -> str:
        """The metadata text that goes into the file."""
        loss = None if self.loss is None else vars(self.loss)
        values: dict[str, Any] = {**vars(self), "known_answer": vars(self.known_answer), "loss": loss}
        del values["text"], values["text_kept"]
        if self.text is not None:
            values |= {**text_fields(self.text), "text_kept": self.text_kept}
        return json.dumps({"kind": KIND, "version": VERSION, **values}, sort_keys=True)


@dataclass(frozen=True, eq=False)
class Bundle:
    """A checked bundle: its bytes, what it says of itself, what its graph holds, its SHA-256, and who says to have
    signed it, which is for whoever loads it to verify."""

    data: bytes
    info: BundleInfo
    summary: onnxwire.ModelSummary
    digest: str
    signature: signing.Signature | None = None


def with_digest(data: bytes) -> bytes:
    """The file's bytes with the digest filled in; ``data`` carries NO_DIGEST exactly once."""
    if data.count(NO_DIGEST.encode()) != 1:
        raise FileFormatError("the graph holds the digest's placeholder twice; export it again.")
    return data.replace(NO_DIGEST.encode(), hashlib.sha256(data).hexdigest().encode())


def with_signature(data: bytes, key: signing.SigningKey) -> bytes:
    """The file's bytes with the signature filled in; ``data`` carries :func:`signing.entry` and NO_DIGEST."""
    signed = key.sign(signing.message(data, NO_DIGEST.encode()))
    return data.replace(signing.NO_SIGNATURE.encode(), signed.encode())


def read(path: Path) -> Bundle:
    """Read and check a bundle; nothing is run. Raises FileFormatError."""
    path = Path(path)
    try:
        if not path.is_file():
            raise FileFormatError(f"{path} is not a file; expected a client bundle (.onnx).")
        if (size := path.stat().st_size) > MAX_BUNDLE_BYTES:
            raise FileFormatError(f"{path} has {size} bytes; a bundle has at most {MAX_BUNDLE_BYTES}.")
        with path.open("rb") as file:
            data = file.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise FileFormatError(f"cannot read {path}: {error.strerror}; check the name of the bundle.") from error
    return from_bytes(data, str(path))


def from_bytes(data: bytes, source: str) -> Bundle:
    """As :func:`read`, from bytes; ``source`` names them in messages."""
    summary = onnxwire.summarise(data, source)
    if METADATA_KEY not in summary.metadata:
        raise FileFormatError(f"{source} is an ONNX model but no client bundle; make one with collafuse export-client.")
    digest = _check_digest(data, summary.metadata, source)
    text = summary.metadata[METADATA_KEY]
    if len(text) > MAX_METADATA_BYTES:
        raise FileFormatError(f"{source} has {len(text)} bytes of metadata; at most {MAX_METADATA_BYTES} are read.")
    info = _info(parse_json(bytes(text), source), source)
    _check_graph(summary, info, source)
    return Bundle(data, info, summary, digest, _signature(data, summary.metadata, digest, source))


def _signature(data: bytes, metadata: Mapping[str, memoryview], digest: str, source: str) -> signing.Signature | None:
    text = metadata.get(SIGNATURE_KEY)
    if text is None:
        return None
    if len(text) > MAX_METADATA_BYTES:
        raise FileFormatError(f"{source} has a signature of {len(text)} bytes; refused.")
    return signing.read_entry(bytes(text), data.replace(digest.encode(), NO_DIGEST.encode()), source)


def _check_digest(data: bytes, metadata: Mapping[str, memoryview], source: str) -> str:
    digest = bytes(metadata.get(DIGEST_KEY, b""))
    if len(digest) != 64 or data.count(digest) != 1:
        raise FileFormatError(f"{source} carries no valid SHA-256; get the bundle anew.")
    if hashlib.sha256(data.replace(digest, NO_DIGEST.encode())).hexdigest().encode() != digest:
        raise FileFormatError(f"{source} does not match the SHA-256 that it carries; it was damaged. Get it anew.")
    return digest.decode()


def _info(values: dict[str, Any], source: str) -> BundleInfo:
    fields = Fields(values, source)
    fields.text("kind", one_of=[KIND])
    version = fields.take("version")
    if type(version) is not int or version != VERSION:
        raise FileFormatError(
            f"{source} has bundle format version {shown(version)}, this program reads version {VERSION}; "
            "update the older of the two."
        )
    channels, height, width = fields.integers("image_shape", length=3, at_least=1, at_most=MAX_SIDE)
    if channels > MAX_CHANNELS:
        raise FileFormatError(f"{source} is for images with {channels} channels; at most {MAX_CHANNELS} are known.")
    sigma_max = fields.number("sigma_max", above=SIGMA_MIN, at_most=SIGMA_MAX)
    precision, graph = fields.text("precision", one_of=PRECISIONS), fields.text("graph", one_of=GRAPHS)
    info = BundleInfo(
        client=fields.text("client"),
        image_shape=(channels, height, width),
        label_names=fields.names("label_names"),
        sigma_min=fields.number("sigma_min", above=0.0, at_most=sigma_max),
        sigma_max=sigma_max,
        sampler=fields.text("sampler", one_of=STEPS),
        steps=fields.integer("steps", at_least=1, at_most=MAX_STEPS),
        sigma_low=fields.number("sigma_low", above=0.0, at_most=sigma_max),
        guidance=fields.number("guidance", at_least=0.0, at_most=MAX_GUIDANCE),
        blank_trained=fields.boolean("blank_trained"),
        precision=precision,
        opset=fields.integer("opset", at_least=1, at_most=100),
        provenance=fields.texts("provenance"),
        known_answer=knownanswer.read(fields.nested("known_answer"), GRAPHS[graph], source),
        loss=_loss(fields, precision, source),
        graph=graph,
        # Bundles of before this was recorded do not say.
        labels_kept=fields.boolean("labels_kept") if fields.holds("labels_kept") else False,
        text=read_text_space(fields, source),
        text_kept=fields.boolean("text_kept") if fields.holds("text_kept") else False,
    )
    fields.done()
    return info


def _loss(fields: Fields, precision: str, source: str) -> Loss | None:
    if precision == "fp32":
        if fields.take("loss") is not None:
            raise FileFormatError(f"{source} is in fp32 and yet states a loss against fp32; export it again.")
        return None
    fields = fields.nested("loss")
    loss = Loss(
        images=fields.integer("images", at_least=1, at_most=1 << 40),
        mean_grey_levels=fields.number("mean_grey_levels", at_least=0.0, at_most=255.0),
        max_grey_levels=fields.integer("max_grey_levels", at_least=0, at_most=255),
        psnr_db=fields.number("psnr_db", at_least=0.0, at_most=MAX_PSNR_DB),
        worst_label=fields.text("worst_label"),
        worst_psnr_db=fields.number("worst_psnr_db", at_least=0.0, at_most=MAX_PSNR_DB),
    )
    fields.done()
    return loss


def _check_graph(summary: onnxwire.ModelSummary, info: BundleInfo, source: str) -> None:
    if unknown := summary.operators - OPERATORS:
        raise FileFormatError(
            f"{source} uses the operators {shown_names(unknown)}, which no bundle has; refused. "
            "Export the client again with collafuse export-client."
        )
    allowed = PRECISIONS[info.precision] | ({UINT8} if info.graph == "whole" else set())
    if foreign := summary.element_types - allowed:
        raise FileFormatError(
            f"{source} says that it is in {info.precision} and holds elements of the ONNX types "
            f"{', '.join(map(str, sorted(foreign)))}, which such a bundle has not; export it again."
        )
    inputs, output = (INPUTS, OUTPUT) if info.graph == "step" else (WHOLE_INPUTS, PIXELS)
    if set(summary.inputs) != set(inputs) or set(summary.outputs) != {output}:
        raise FileFormatError(
            f"{source} maps {shown_names(summary.inputs)} to {shown_names(summary.outputs)}; "
            f"a bundle with graph {info.graph!r} maps {', '.join(inputs)} to {output}."
        )
    channels, height, width = info.image_shape
    expected: dict[str, tuple[int, tuple[int, ...]]] = {
        "x": (FLOAT32, info.image_shape),
        "sigma": (FLOAT32, ()),
        "labels": (FLOAT32, (info.space.width,)),
        OUTPUT: (FLOAT32, info.image_shape),
        PIXELS: (UINT8, (height, width, channels)),
    }
    for name, value in (summary.inputs | summary.outputs).items():
        element_type, axes = expected[name]
        batch_is_free = value.axes[:1] and isinstance(value.axes[0], str)
        if value.element_type != element_type or not batch_is_free or value.axes[1:] != axes:
            raise FileFormatError(
                f"{source}: {name} has ONNX type {value.element_type} and axes {shown(list(value.axes))}, expected "
                f"{element_type} and {['N', *axes]} by its metadata; export it again."
            )
