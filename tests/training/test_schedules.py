"""Learning-rate schedules."""

import pytest
from fvcore.common.param_scheduler import LinearParamScheduler

from fbnetv3.config import get_cfg
from fbnetv3.errors import UsageError
from fbnetv3.training.schedules import SCHEDULES, build_schedule
from fbnetv3.training.solver import schedule_from_config


def test_cosine_with_warm_up():
    schedule = build_schedule("cosine", 10, warmup_epochs=2, warmup_factor=0.1)
    assert schedule(0) == pytest.approx(0.1)
    assert schedule(0.1) == pytest.approx(0.55)  # halfway through the warmup
    assert schedule(0.2) == pytest.approx(1.0)
    assert schedule(0.6) == pytest.approx(0.5)
    assert schedule(1 - 1e-9) == pytest.approx(0, abs=1e-6)


def test_exponential_decay_is_per_epoch_after_the_warm_up():
    schedule = build_schedule("exponential", 400, decay=0.9875, warmup_epochs=5)
    assert schedule(5 / 400) == pytest.approx(1)
    assert schedule(6 / 400) == pytest.approx(0.9875)
    assert schedule(105 / 400) == pytest.approx(0.9875**100)


def test_without_warm_up_and_with_nothing_else():
    assert build_schedule("exponential", 10, decay=0.5)(0.3) == pytest.approx(0.125)
    assert build_schedule("cosine", 2, warmup_epochs=2)(0.5) == pytest.approx(0.55)


def test_a_registered_schedule_gets_the_settings_that_it_accepts():
    @SCHEDULES.register(name="linear")
    def build_linear():
        return LinearParamScheduler(1.0, 0.0)

    try:
        assert build_schedule("linear", 4, decay=0.9)(0.75) == pytest.approx(0.25)
    finally:
        SCHEDULES.remove("linear")


def test_an_unknown_schedule():
    cfg = get_cfg()
    cfg.SOLVER.SCHEDULE = "cosin"
    with pytest.raises(UsageError, match="SOLVER.SCHEDULE: unknown schedule 'cosin': did you mean cosine?"):
        schedule_from_config(cfg)
