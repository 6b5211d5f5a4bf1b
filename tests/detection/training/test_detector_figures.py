"""Figures of a detector's run: the steps at which losses and evaluations are drawn."""

import pytest

pytest.importorskip("detectron2", reason="detectron2 is optional: python tools/install_detectron2.py")

from fbnetv3.detection.training.detector_figures import points_by_step


def test_values_are_drawn_at_the_number_of_completed_steps():
    """Evaluations after 25 and 40 of 40 steps: detectron2 writes the first as 24, and the run the last as 40."""
    entries = [
        {"iteration": 19, "total_loss": 3.0},
        {"iteration": 24, "bbox/AP": 10.0},
        {"iteration": 39, "total_loss": 2.0},
        {"iteration": 40, "bbox/AP": 20.0},
    ]
    assert points_by_step(entries, "total_loss") == [(20, 3.0), (40, 2.0)]
    assert points_by_step(entries, "bbox/AP") == [(25, 10.0), (40, 20.0)]
    assert points_by_step(entries, "segm/AP") == []
