"""H.264 bitstreams: NAL units, sequence parameter sets (SPS), and the decoder configuration of an MP4 (avcC).

Section numbers are those of ITU-T H.264 (2021) and ISO/IEC 14496-15.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

# nal_unit_type (table 7-1).
IDR, SPS, PPS, DELIMITER = 5, 7, 8, 9
START_CODE = b"\x00\x00\x01"
# Profiles whose SPS states chroma format and bit depth (7.3.2.1.1), among those that x264 can write.
HIGH_PROFILES = (100, 110, 122, 244)
LENGTH_BYTES = 4
# chroma_format_idc.
CHROMA_444 = 3
EXTENDED_ASPECT_RATIO = 255


class NotSupported(ValueError):
    """A bitstream has a form that this module does not read. The message says which, as text for the user."""


def unit_type(unit: bytes) -> int:
    """Return the type of a NAL unit (nal_unit_type).

    Args:
        unit: the NAL unit, with its header.
    """
    return unit[0] & 31


def split_start_codes(data: bytes) -> list[bytes]:
    """Split a byte stream at its start codes (annex B).

    Args:
        data: NAL units, each behind a start code.

    Returns:
        The NAL units.
    """
    # A NAL unit never ends with a zero byte; zeros before a start code belong to the byte stream.
    return [unit for part in data.split(START_CODE)[1:] if (unit := part.rstrip(b"\x00"))]


def split_lengths(data: bytes) -> list[bytes]:
    """Split a packet of an MP4, in which a length of four bytes precedes each NAL unit.

    Args:
        data: the packet.

    Returns:
        The NAL units.

    Raises:
        NotSupported: the lengths do not add up to the packet.
    """
    units, place = [], 0
    while place < len(data):
        start = place + LENGTH_BYTES
        place = start + int.from_bytes(data[start - LENGTH_BYTES : start], "big")
        if place > len(data) or place == start:
            raise NotSupported("a packet is damaged")
        units.append(data[start:place])
    return units


def splitter_of(extradata: bytes) -> Callable[[bytes], list[bytes]]:
    """Return the function that splits the packets of a stream into NAL units.

    Args:
        extradata: FFmpeg's `extradata` of the stream.
    """
    return split_lengths if is_avcc(extradata) else split_start_codes


def picture_units(units: Iterable[bytes]) -> list[bytes]:
    """Return the NAL units that an MP4 stores in its packets.

    It has the parameter sets in its header only. GStreamer stops sending those of the header to a decoder when it meets
    some in a packet.

    Args:
        units: the NAL units of a packet.
    """
    return [unit for unit in units if unit_type(unit) not in (SPS, PPS, DELIMITER)]


def join_lengths(units: Iterable[bytes]) -> bytes:
    """Write NAL units as a packet of an MP4.

    Args:
        units: the NAL units.

    Returns:
        The packet.
    """
    return b"".join(len(unit).to_bytes(LENGTH_BYTES, "big") + unit for unit in units)


class _Bits:
    """Reads a string of the characters 0 and 1 from its start."""

    def __init__(self, bits: str) -> None:
        self._bits, self.place = bits, 0

    def u(self, count: int) -> int:
        """Read an unsigned number of `count` bits."""
        text = self._bits[self.place : self.place + count]
        if len(text) < count:
            raise NotSupported("a parameter set is damaged")
        self.place += count
        return int(text, 2) if text else 0

    def ue(self) -> int:
        """Read an unsigned Exp-Golomb number (9.1)."""
        zeros = 0
        while not self.u(1):
            zeros += 1
        return (1 << zeros) - 1 + self.u(zeros)

    def since(self, place: int) -> str:
        """Return the bits from `place` up to the current place."""
        return self._bits[place : self.place]

    @property
    def rest(self) -> str:
        """The bits that were not read yet."""
        return self._bits[self.place :]


def _ue(value: int) -> str:
    """Write an unsigned Exp-Golomb number (9.1)."""
    digits = f"{value + 1:b}"
    return "0" * (len(digits) - 1) + digits


class Usability(NamedTuple):
    """What a decoder is told beside what it needs to decode.

    Attributes:
        colours: colour primaries, transfer characteristics and matrix; None: not stated.
        states_reordering: whether it says how many frames a decoder must hold to put them in order.
    """

    colours: tuple[int, int, int] | None
    states_reordering: bool


@dataclass(frozen=True, slots=True)
class SequenceParameters:
    """A sequence parameter set (7.3.2.1.1). Parts that are only copied are kept as strings of 0 and 1.

    Attributes:
        profile, level: profile_idc and level_idc.
        constraints: the byte of the constraint flags.
        id: seq_parameter_set_id.
        chroma: chroma format, bit depths and scaling matrices; empty in profiles that do not state them.
        order: lengths of frame numbers and of picture order counts.
        references: max_num_ref_frames.
        gaps: gaps_in_frame_num_value_allowed_flag.
        size: width and height in macroblocks, minus 1.
        progressive: whether all pictures are frames (frame_mbs_only_flag).
        direct: direct_8x8_inference_flag.
        crop: frame_cropping_flag and the cropping.
        vui: vui_parameters_present_flag and the VUI.
    """

    profile: int
    constraints: int
    level: int
    id: int
    chroma: str
    order: str
    references: int
    gaps: int
    size: tuple[int, int]
    progressive: bool
    direct: int
    crop: str
    vui: str

    @classmethod
    def parse(cls, unit: bytes) -> SequenceParameters:
        """Read a sequence parameter set.

        Args:
            unit: the NAL unit, with its header.

        Raises:
            NotSupported: it is damaged.
        """
        payload = unit[1:].replace(b"\x00\x00\x03", b"\x00\x00")  # emulation prevention (7.3.1)
        bits = _Bits("".join(f"{byte:08b}" for byte in payload).rstrip("0")[:-1])
        profile, constraints, level, id_ = bits.u(8), bits.u(8), bits.u(8), bits.ue()
        chroma = _read_chroma(bits) if profile in HIGH_PROFILES else ""
        order = _read_order(bits)
        references, gaps = bits.ue(), bits.u(1)
        size, progressive = (bits.ue(), bits.ue()), bool(bits.u(1))
        if not progressive:
            bits.u(1)
        direct = bits.u(1)
        place = bits.place
        if bits.u(1):
            _skip(bits, 4)
        crop = bits.since(place)
        return cls(
            profile,
            constraints,
            level,
            id_,
            chroma,
            order,
            references,
            gaps,
            size,
            progressive,
            direct,
            crop,
            bits.rest,
        )

    def unit(self) -> bytes:
        """Write the parameter set of progressive frames as a NAL unit."""
        bits = f"{self.profile:08b}{self.constraints:08b}{self.level:08b}{_ue(self.id)}"
        if self.profile in HIGH_PROFILES:
            bits += self.chroma or PLAIN_CHROMA
        bits += f"{self.order}{_ue(self.references)}{self.gaps}{_ue(self.size[0])}{_ue(self.size[1])}1{self.direct}"
        bits += f"{self.crop}{self.vui}1"
        bits += "0" * (-len(bits) % 8)
        payload = int(bits, 2).to_bytes(len(bits) // 8, "big")
        return bytes([3 << 5 | SPS]) + re.sub(rb"\x00\x00(?=[\x00-\x03])", b"\x00\x00\x03", payload)

    def extension(self) -> bytes:
        """Write what an avcC says of chroma format and bit depths, in the profiles that state them."""
        if self.profile not in HIGH_PROFILES:
            return b""
        bits = _Bits(self.chroma)
        chroma = bits.ue()
        if chroma == CHROMA_444:
            bits.u(1)
        return bytes([0xFC | chroma, 0xF8 | bits.ue(), 0xF8 | bits.ue(), 0])

    def usability(self) -> Usability:
        """Read the VUI, video usability information (E.1.1).

        Raises:
            NotSupported: it is damaged.
        """
        bits = _Bits(self.vui)
        colours = None
        if not bits.u(1):
            return Usability(None, states_reordering=False)
        if bits.u(1) and bits.u(8) == EXTENDED_ASPECT_RATIO:
            bits.u(32)
        if bits.u(1):  # overscan
            bits.u(1)
        if bits.u(1):  # video signal type
            bits.u(4)
            if bits.u(1):  # colour description
                colours = bits.u(8), bits.u(8), bits.u(8)
        if bits.u(1):  # location of chroma samples
            _skip(bits, 2)
        if bits.u(1):  # timing
            bits.u(65)
        hypothetical_decoders = [bits.u(1) and _skip_hypothetical_decoder(bits) for _ in range(2)]
        if any(hypothetical_decoders):
            bits.u(1)
        bits.u(1)  # pic_struct_present_flag
        return Usability(colours, bool(bits.u(1)))

    def alike(self, recording: SequenceParameters) -> SequenceParameters:
        """Describe the same frames as this set, with the buffers, the reordering and the level of another one.

        A decoder that meets both in turn then keeps its pictures and goes on. OpenH264, for instance, loses a picture
        where the reordering changes.

        Args:
            recording: the other set.

        Returns:
            The new set, with this one's id.

        Raises:
            NotSupported: the sets cannot be made alike.
        """
        if (self.size, self.crop) != (recording.size, recording.crop):
            raise NotSupported("its pictures are cropped in an unusual way")
        if self.references > recording.references:
            raise NotSupported("its decoder keeps fewer pictures than x264 needs")
        if (self.chroma or PLAIN_CHROMA) != (recording.chroma or PLAIN_CHROMA):
            raise NotSupported("its samples are of another kind, or it has scaling matrices of its own")
        return replace(
            self,
            profile=recording.profile,
            constraints=recording.constraints,
            level=recording.level,
            chroma=recording.chroma,
            references=recording.references,
            vui=recording.vui,
        )


# 4:2:0, 8 bits, no lossless macroblocks, no scaling matrices: what profiles without these fields have.
PLAIN_CHROMA = f"{_ue(1)}{_ue(0)}{_ue(0)}00"


def _skip(bits: _Bits, numbers: int) -> None:
    for _ in range(numbers):
        bits.ue()


def _read_chroma(bits: _Bits) -> str:
    place = bits.place
    if bits.ue() == CHROMA_444:
        bits.u(1)
    _skip(bits, 2)
    bits.u(1)
    if bits.u(1):
        raise NotSupported("it has scaling matrices of its own")
    return bits.since(place)


def _read_order(bits: _Bits) -> str:
    place = bits.place
    bits.ue()  # log2_max_frame_num_minus4
    kind = bits.ue()
    if kind == 0:
        bits.ue()
    elif kind == 1:
        bits.u(1)
        _skip(bits, 2)
        _skip(bits, bits.ue())
    return bits.since(place)


def _skip_hypothetical_decoder(bits: _Bits) -> bool:
    """Skip hrd_parameters (E.1.2)."""
    count = bits.ue() + 1
    bits.u(8)
    for _ in range(count):
        _skip(bits, 2)
        bits.u(1)
    bits.u(20)
    return True


class ParameterSets(NamedTuple):
    """The parameter sets of a stream.

    Attributes:
        sequence: the sequence parameter sets, as NAL units.
        picture: the picture parameter sets, as NAL units.
        extension: what follows them in the avcC of an MP4.
    """

    sequence: Sequence[bytes]
    picture: Sequence[bytes]
    extension: bytes = b""

    @classmethod
    def parse(cls, extradata: bytes) -> ParameterSets:
        """Read the parameter sets of a stream from FFmpeg's `extradata`: an avcC, or NAL units behind start codes.

        Args:
            extradata: the data.

        Raises:
            NotSupported: it is damaged, or lengths in the packets do not have four bytes.
        """
        if is_avcc(extradata):
            return cls._parse_avcc(extradata)
        units = split_start_codes(extradata)
        sequence, picture = ([unit for unit in units if unit_type(unit) == kind] for kind in (SPS, PPS))
        if not sequence or not picture:
            raise NotSupported("its parameter sets were not found")
        return cls(sequence, picture)

    @classmethod
    def _parse_avcc(cls, data: bytes) -> ParameterSets:
        if data[4] & 3 != LENGTH_BYTES - 1:
            raise NotSupported("the lengths in its packets do not have four bytes")
        place, found = 5, []
        for mask in (31, 255):
            units = []
            count, place = data[place] & mask, place + 1
            for _ in range(count):
                start = place + 2
                place = start + int.from_bytes(data[place:start], "big")
                units.append(data[start:place])
            found.append(units)
            if not all(units) or place > len(data) or (mask == 31 and place == len(data)):
                raise NotSupported("its parameter sets are damaged")
        return cls(found[0], found[1], data[place:])

    def avcc(self) -> bytes:
        """Write an avcC (ISO/IEC 14496-15, 5.3.3.1). Profile and level are those of the first sequence."""
        data = bytes([1, *self.sequence[0][1:4], 0xFC | (LENGTH_BYTES - 1), 0xE0 | len(self.sequence)])
        data += b"".join(len(unit).to_bytes(2, "big") + unit for unit in self.sequence)
        data += bytes([len(self.picture)])
        data += b"".join(len(unit).to_bytes(2, "big") + unit for unit in self.picture)
        return data + (self.extension or SequenceParameters.parse(self.sequence[0]).extension())

    def free_id(self) -> int:
        """Return the smallest id that no sequence and no picture parameter set has.

        Raises:
            NotSupported: there is none.
        """
        taken = {SequenceParameters.parse(unit).id for unit in self.sequence}
        taken |= {_Bits("".join(f"{byte:08b}" for byte in unit[1:6])).ue() for unit in self.picture}
        free = sorted(set(range(1, 32)) - taken)
        if not free:
            raise NotSupported("it has too many parameter sets")
        return free[0]


def is_avcc(extradata: bytes) -> bool:
    """Whether FFmpeg's `extradata` is an avcC. Then packets have lengths, otherwise start codes.

    Args:
        extradata: the data.
    """
    return len(extradata) > 6 and extradata[0] == 1
