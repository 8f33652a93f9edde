"""`polypstream dicom`: each track of a finished run as DICOM objects, its best picture and its mask there.

The picture is a Secondary Capture without any marker; the mask is a binary Segmentation that refers to it. Importing
this needs the optional part `dicom`.
"""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from highdicom import AlgorithmIdentificationSequence
from highdicom.sc import SCImage
from highdicom.seg import Segmentation, SegmentDescription
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from polypstream.core.files import write_atomically, writing
from polypstream.core.frame import Frame
from polypstream.core.orientation import Orientation
from polypstream.errors import OutputError
from polypstream.inference.model_card import NOTICE
from polypstream.jobs.process import OnProgress
from polypstream.jobs.results import Outline, Run, best_outlines, find_run, frames_again, open_again
from polypstream.media.scaling import shown
from polypstream.sources.dicom import is_dicom, quiet, read_header

FOLDER = "dicom"
# Of the patient and the study, what a DICOM recording hands on.
HANDED_ON = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
)
# High, so that ours stand behind the study's own series.
CAPTURES, SEGMENTATIONS = 9001, 9002
# A child of 49755003, Morphologically Abnormal Structure; DICOM's own tables have only polyps of certain organs.
POLYP = Code("41329004", "SCT", "Polyp")
UTF_8 = "ISO_IR 192"
LONG_STRING = 64
ID_DIGITS = 16
DEIDENTIFICATION = "Patient and study replaced, picture outside the view blackened"


@dataclass(frozen=True, slots=True)
class Study:
    """What the objects of a run have in common.

    Attributes:
        identity: attributes of the patient and the study.
        orientation: how its pictures are turned for people, and the shape of their pixels.
        captures, segmentations: UIDs of the two series.
    """

    identity: Dataset
    orientation: Orientation
    captures: str = field(default_factory=generate_uid)
    segmentations: str = field(default_factory=generate_uid)


def write_dicom(
    recording: str, results: Path, overwrite: bool = False, on_progress: OnProgress = lambda *_: None
) -> list[Path]:
    """Write a capture and a segmentation of each track into the run's folder `dicom/`.

    Args:
        recording: as it was given to `process`.
        results: the folder that was given to `process --output`, or that of this one run.
        overwrite: replace objects that exist.
        on_progress: told the frames done and the frames expected (None: unknown).

    Returns:
        The files written, two a track.

    Raises:
        DataError: there is no such run, or it is of another recording.
        SourceError: the recording cannot be read.
        OutputError: objects exist and may not be replaced, or cannot be written.
    """
    run = find_run(recording, results)
    best, written = best_outlines(run), list[Path]()
    last = max(best, default=-1)
    with closing(open_again(run, recording)) as source:
        study = Study(identity_of(run, recording), source.format.orientation)
        folder = _prepare_folder(run.folder / FOLDER, overwrite)
        for frame, _ in frames_again(run, source, on_progress) if best else ():
            for outline in best.get(frame.index, ()):
                capture = capture_of(frame, outline, study)
                segmentation = segmentation_of(capture, outline, run, study)
                for kind, dataset in (("capture", capture), ("segmentation", segmentation)):
                    written.append(folder / f"track-{outline.track_id}-{kind}.dcm")
                    _save(dataset, study, written[-1])
            if frame.index >= last:
                break
    return written


def identity_of(run: Run, recording: str) -> Dataset:
    """The patient and the study: a DICOM recording's own; else, and if the run is de-identified, new ones."""
    identity, path = Dataset(), Path(recording)
    identity.SpecificCharacterSet = UTF_8
    if run.settings.deidentify.enabled:
        identity.StudyInstanceUID = generate_uid()
        # Not the run's name, which may be the recording's own, and that the patient's.
        identity.PatientName, identity.PatientID = "", identity.StudyInstanceUID[-ID_DIGITS:]
        identity.PatientIdentityRemoved, identity.DeidentificationMethod = "YES", DEIDENTIFICATION
    elif is_dicom(path):
        header = read_header(path)
        with quiet():
            for keyword in HANDED_ON:
                if keyword in header:
                    identity[keyword] = header[keyword]
    else:
        identity.PatientName, identity.PatientID = "", _long_string(run.folder.resolve().name)
    if not identity.get("StudyInstanceUID"):
        identity.StudyInstanceUID = generate_uid()
    return identity


def _long_string(text: str) -> str:
    """A text as DICOM's LO takes it: no backslash, no control character, not over 64 characters.

    Cut at 64 bytes of UTF-8, since some readers count those. File names may be any bytes.
    """
    valid = text.encode(errors="replace")[:LONG_STRING].decode(errors="ignore")
    return re.sub(r"[\\\x00-\x1f\x7f]", "_", valid).strip()


def capture_of(frame: Frame, outline: Outline, study: Study) -> SCImage:
    """The picture of a frame as a Secondary Capture."""
    capture = SCImage(
        pixel_array=shown("rgb24", study.orientation.turned_only)(frame.picture).to_ndarray(),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),  # asked for, and removed below
        study_instance_uid=study.identity.StudyInstanceUID,
        series_instance_uid=study.captures,
        series_number=CAPTURES,
        series_description=f"Polyp captures. {NOTICE}",
        sop_instance_uid=generate_uid(),
        instance_number=outline.track_id,
        manufacturer="polypstream",
        specific_character_set=UTF_8,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    capture.Laterality = ""
    capture.LossyImageCompression = "01"  # by whoever recorded it
    capture.ImageComments = f"Track {outline.track_id} at {frame.seconds:.6f} s (frame {frame.index}). {NOTICE}"
    shape = study.orientation.pixel_shape
    if shape != 1:
        # DICOM has the height of a pixel before its width.
        tall, wide = (
            (shape.numerator, shape.denominator) if study.orientation.swapped else shape.as_integer_ratio()[::-1]
        )
        capture.PixelAspectRatio = [tall, wide]
    return capture


def segmentation_of(capture: SCImage, outline: Outline, run: Run, study: Study) -> Segmentation:
    """A track's mask in its capture, by whom it was made."""
    model, program = run.about["model"], run.about["polypstream"]
    algorithm = AlgorithmIdentificationSequence(
        name="polypstream SA-UNet",
        version=_long_string(f"{model['model_name']} {model['model_version']}, polypstream {program}"),
        family=codes.DCM.ArtificialIntelligence,
    )
    segment = SegmentDescription(
        segment_number=1,
        segment_label=f"Polyp, track {outline.track_id}",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=POLYP,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
    )
    segmentation = Segmentation(
        source_images=[capture],
        pixel_array=study.orientation.plane(outline.mask(*run.picture_size))[None] // 255,
        segmentation_type="BINARY",
        segment_descriptions=[segment],
        series_instance_uid=study.segmentations,
        series_number=SEGMENTATIONS,
        series_description=f"Polyp segmentations. {NOTICE}",
        sop_instance_uid=generate_uid(),
        instance_number=outline.track_id,
        manufacturer="polypstream",
        manufacturer_model_name=_long_string(f"SA-UNet {model['model_name']}"),
        software_versions=program,
        device_serial_number=_long_string(model["checkpoint_sha256"]),
        content_label="POLYP",
        content_description=f"Polyp, track {outline.track_id}",
    )
    segmentation.ImageComments = capture.ImageComments
    return segmentation


def _prepare_folder(folder: Path, overwrite: bool) -> Path:
    """Make the folder, and remove objects that the user has given up.

    Raises:
        OutputError: objects exist and may not be replaced, or the folder cannot be written.
    """
    existing = list(folder.glob("track-*.dcm"))
    if existing and not overwrite:
        raise OutputError(f"{folder}: holds DICOM objects already; give --overwrite to replace them")
    with writing(folder):
        folder.mkdir(exist_ok=True)
        for path in existing:
            path.unlink()
    return folder


def _save(dataset: Dataset, study: Study, path: Path) -> None:
    """Write an object with its patient and study, whole or not at all."""
    dataset.update(study.identity)
    dataset.PatientOrientation = None  # nobody knows how an endoscope was held
    with write_atomically(path) as unfinished:
        dataset.save_as(unfinished)
