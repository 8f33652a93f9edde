"""Figures by independent programs: `independent.py IN.json OUT.json`, in the environment of tests/readers.txt.

IN.json has `truth` (COCO), `marks` (COCO results), `peaks`, `peak`, `overlap`, `rate`; and `masks`: pairs of masks as
lists of rows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import true_colon
from pycocotools import mask as coco_masks
from true_colon._config import LesionConfig


def by_true_colon(given: dict[str, Any]) -> dict[str, Any]:
    """Figures of frames, lesions, FROC and AFROC."""
    lesions = LesionConfig(fps=given["rate"], min_detected_frames_in_window=1, latency_windows_seconds=(1, 3))
    config = true_colon.create_config(
        iou_thr=given["overlap"],
        conf=given["peak"],
        conf_grid=tuple(given["peaks"]),
        tiers=frozenset({"frame", "lesion", "froc", "afroc"}),
        lesion=lesions,
    )
    evaluator = true_colon.create_evaluator(config=config, id_source="gt_integer")
    result = evaluator.evaluate(given["truth"], given["marks"])
    return {
        "sensitivity": result.frame.sensitivity,
        "specificity": result.frame.specificity,
        "lesions": result.lesion.summary.n_lesions,
        "found": result.lesion.summary.detected_any,
        "found_25": result.lesion.summary.detected_25pct,
        "found_50": result.lesion.summary.detected_50pct,
        "within_1_s": result.lesion.summary.detected_within_1s,
        "within_3_s": result.lesion.summary.detected_within_3s,
        "share_of_frames": result.lesion.summary.mean_det_fraction,
        "delays": [each.latency_seconds for each in result.lesion.records],
        "targets_found": result.froc.tpr_loc,
        "false_marks_per_frame": result.froc.fp_per_image,
        "false_frames": result.afroc.fpf,
    }


def by_pycocotools(given: dict[str, Any]) -> dict[str, Any]:
    """Intersection over union of the boxes of each image, and of pairs of masks."""
    boxes = []
    for image in given["truth"]["images"]:
        real = [each["bbox"] for each in given["truth"]["annotations"] if each["image_id"] == image["id"]]
        found = [each["bbox"] for each in given["marks"] if each["image_id"] == image["id"]]
        if real and found:
            boxes += coco_masks.iou(found, real, [0] * len(real)).ravel().tolist()
    masks = []
    for pair in given["masks"]:
        one, other = (coco_masks.encode(np.asfortranarray(np.array(each, np.uint8))) for each in pair)
        masks.append(float(coco_masks.iou([one], [other], [0])[0, 0]))
    return {"boxes": sorted(value for value in boxes if value > 0), "masks": masks}


content = json.loads(Path(sys.argv[1]).read_text())
Path(sys.argv[2]).write_text(json.dumps({"true_colon": by_true_colon(content), "pycocotools": by_pycocotools(content)}))
