"""`polypstream dicom`: each track of a finished run as two DICOM objects, from the frame that shows it best.

The frame is a Secondary Capture without markers. The mask is a binary Segmentation that refers to it. This module needs
the optional dependencies of the extra `dicom`.
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
from polypstream.core.notice import NOTICE
from polypstream.core.orientation import Orientation
from polypstream.core.protocols import OnProgress
from polypstream.errors import OutputError
from polypstream.jobs.results import Outline, Run, best_outlines, find_run, frames_again, open_again
from polypstream.media.scaling import shown
from polypstream.sources.dicom import is_dicom, quiet, read_header

FOLDER = "dicom"
# Attributes of the patient and the study that are copied from a DICOM recording.
COPIED_ATTRIBUTES = (
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
# Series numbers, high enough to sort behind the study's own series.
CAPTURES, SEGMENTATIONS = 9001, 9002
# A child of 49755003, Morphologically Abnormal Structure. DICOM's own tables have polyps of certain organs only.
POLYP = Code("41329004", "SCT", "Polyp")
UTF_8 = "ISO_IR 192"
LONG_STRING = 64
ID_DIGITS = 16
DEIDENTIFICATION = "Patient and study replaced, picture outside the view blackened"


@dataclass(frozen=True, slots=True)
class Study:
    """Values that all objects of a run share.

    Attributes:
        identity: attributes of the patient and the study.
        orientation: rotation and pixel shape of the recording.
        captures, segmentations: UIDs of the two series.
    """

    identity: Dataset
    orientation: Orientation
    captures: str = field(default_factory=generate_uid)
    segmentations: str = field(default_factory=generate_uid)


def write_dicom(
    recording: str, results: Path, overwrite: bool = False, on_progress: OnProgress = lambda *_: None
) -> list[Path]:
    """Write a capture and a segmentation for each track into the folder `dicom/` of the run.

    Args:
        recording: as it was given to `process`.
        results: folder that was given to `process --output`, or the folder of this run.
        overwrite: replace existing objects.
        on_progress: called as on_progress(done, total) with frame counts; total is None if unknown.

    Returns:
        Paths of the files, two for each track.

    Raises:
        DataError: there is no such run, or it is not a run of this recording.
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
    """Attributes of the patient and the study.

    They are those of the recording if it is a DICOM object. Otherwise, or if the run is de-identified, they are new.

    Args:
        run: the run.
        recording: path of its recording.

    Raises:
        SourceError: the DICOM object cannot be read.
    """
    identity, path = Dataset(), Path(recording)
    identity.SpecificCharacterSet = UTF_8
    if run.settings.deidentify.enabled:
        identity.StudyInstanceUID = generate_uid()
        # Not the run's name: that may be the recording's name, which may be the patient's.
        identity.PatientName, identity.PatientID = "", identity.StudyInstanceUID[-ID_DIGITS:]
        identity.PatientIdentityRemoved, identity.DeidentificationMethod = "YES", DEIDENTIFICATION
    elif is_dicom(path):
        header = read_header(path)
        with quiet():
            for keyword in COPIED_ATTRIBUTES:
                if keyword in header:
                    identity[keyword] = header[keyword]
    else:
        identity.PatientName, identity.PatientID = "", _long_string(run.folder.resolve().name)
    if not identity.get("StudyInstanceUID"):
        identity.StudyInstanceUID = generate_uid()
    return identity


def _long_string(text: str) -> str:
    """Make a valid value of DICOM's LO type: no backslash, no control character, at most 64 characters.

    It is cut at 64 bytes of UTF-8, since some readers count bytes. File names may contain any bytes.
    """
    valid = text.encode(errors="replace")[:LONG_STRING].decode(errors="ignore")
    return re.sub(r"[\\\x00-\x1f\x7f]", "_", valid).strip()


def capture_of(frame: Frame, outline: Outline, study: Study) -> SCImage:
    """Make the Secondary Capture of a frame.

    Args:
        frame: the frame.
        outline: the track in this frame.
        study: values shared by all objects.
    """
    capture = SCImage(
        pixel_array=shown("rgb24", study.orientation.turned_only)(frame.in_memory()).to_ndarray(),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),  # required by highdicom; `_save` removes it
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
    capture.LossyImageCompression = "01"  # the recording was compressed
    capture.ImageComments = f"Track {outline.track_id} at {frame.seconds:.6f} s (frame {frame.index}). {NOTICE}"
    shape = study.orientation.pixel_shape
    if shape != 1:
        # DICOM stores the height of a pixel before its width.
        tall, wide = (
            (shape.numerator, shape.denominator) if study.orientation.swapped else shape.as_integer_ratio()[::-1]
        )
        capture.PixelAspectRatio = [tall, wide]
    return capture


def segmentation_of(capture: SCImage, outline: Outline, run: Run, study: Study) -> Segmentation:
    """Make the Segmentation of a track in its capture, including the algorithm that made it.

    Args:
        capture: the capture of the frame.
        outline: the track in this frame.
        run: the run that found it.
        study: values shared by all objects.
    """
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
    """Create the folder, and remove existing objects if they may be replaced.

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
    """Write an object with its patient and study attributes, completely or not at all."""
    dataset.update(study.identity)
    dataset.PatientOrientation = None  # the orientation of the endoscope is not known
    with write_atomically(path) as unfinished:
        dataset.save_as(unfinished)
