"""Datasets in LeRobot's format, as this package writes them."""

import os

from ofp_vla.lerobot_seams.datasets import store_episode


class Encodes:
    """Leaves the thread as SVT-AV1 does; that one is real-time, which only root may have."""

    def save_episode(self, *, parallel_encoding):
        assert not parallel_encoding
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def test_an_encoder_does_not_keep_the_thread_at_another_priority():
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    store_episode(Encodes(), parallel_encoding=False)
    assert (os.sched_getscheduler(0), os.sched_getparam(0)) == before
