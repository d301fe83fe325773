"""The cache of recordings: when it records, what drops a recording, what happens when recording fails."""

import logging

import pytest
import torch
from torch import nn

from ofp_vla.hosts.recording.buffers import Kept
from ofp_vla.hosts.recording.captures import BOUND, PATIENCE, Captures
from ofp_vla.hosts.recording.cuda import CaptureFailed
from ofp_vla.hosts.recording.whereabouts import Whereabouts
from tests.support.recording import Fake, install


@pytest.fixture
def fake(monkeypatch):
    return install(monkeypatch)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).eval()


@pytest.fixture
def captures(layer):
    return Captures(lambda: Whereabouts(layer))


def ask(captures, layer, x, key=0, function=None, **given):
    with torch.no_grad():
        return captures.run("work", key, function or layer, x, **given)


def rows(n=2, value=1.0):
    return torch.full((n, 3), value)


def test_the_second_call_of_a_shape_is_recorded_and_later_ones_repeated(fake, captures, layer):
    for number, value in enumerate((1.0, 2.0, 3.0, 4.0)):
        out = ask(captures, layer, rows(value=float(value)))
        assert torch.equal(out, layer(rows(value=float(value))))
        assert (fake.recorded, captures.repeated) == (min(number, 1), number)


def test_another_shape_type_key_or_autocast_is_another_recording(fake, captures, layer):
    calls = [
        lambda: ask(captures, layer, rows(2)),
        lambda: ask(captures, layer, rows(5)),
        lambda: ask(captures, lambda x: layer(x.float()), rows(2).double()),
        lambda: ask(captures, layer, rows(2), key="other"),
    ]
    for call in calls * 2:
        call()
    with torch.autocast("cpu", torch.bfloat16):
        assert [ask(captures, layer, rows(2)).dtype for _ in range(2)] == [torch.bfloat16] * 2
    assert fake.recorded == 5
    assert ask(captures, layer, rows(2)).dtype == torch.float32


def test_what_a_caller_has_is_not_written_over_by_the_next_repetition(fake, captures, layer):
    for value in (1.0, 2.0):
        ask(captures, layer, rows(value=float(value)))
    first = ask(captures, layer, rows(value=3.0))
    kept = first.clone()
    ask(captures, layer, rows(value=4.0))
    assert torch.equal(first, kept)
    # Nor does a write into it reach the recording.
    first.zero_()
    assert torch.equal(ask(captures, layer, rows(value=3.0)), kept)


def test_a_weight_written_in_place_is_seen_and_keeps_the_recording(fake, captures, layer):
    for _ in range(3):
        ask(captures, layer, rows())
    layer[0].weight.data.mul_(2.0)
    assert torch.equal(ask(captures, layer, rows()), layer(rows()))
    assert (fake.recorded, captures.dropped) == (1, 0)


def _another_parameter(layer):
    layer[0].weight = nn.Parameter(layer[0].weight * 2)


def _other_data(layer):
    layer[0].weight.data = layer[0].weight * 2


def _a_wrapped_module(layer):
    layer[0] = nn.Sequential(layer[0], nn.Linear(3, 3))


def _another_type_and_back(layer):
    layer.double()
    layer.float()


MOVES = [_another_parameter, _other_data, _a_wrapped_module, _another_type_and_back]


@pytest.mark.parametrize("move", MOVES)
def test_a_moved_weight_drops_the_recording_and_the_call_is_right_already(fake, captures, layer, move):
    for _ in range(3):
        ask(captures, layer, rows())
    before = layer[0].weight
    with torch.no_grad():
        move(layer)
    assert torch.equal(ask(captures, layer, rows()), layer(rows()))
    assert captures.dropped == 1
    assert torch.equal(ask(captures, layer, rows()), layer(rows()))
    assert fake.recorded == 2
    del before


def test_the_memory_of_a_moved_weight_is_not_given_away_while_a_recording_may_read_it(fake, captures, layer):
    for _ in range(2):
        ask(captures, layer, rows())
    address = layer[0].weight.data_ptr()
    layer[0].weight.data = layer[0].weight.data.clone()
    others = [torch.empty(3, 3) for _ in range(50)]
    assert address not in {x.data_ptr() for x in others}


def test_dropout_that_is_switched_on_is_never_recorded_and_drops_what_was(fake, captures, layer, caplog):
    for _ in range(2):
        ask(captures, layer, rows())
    assert fake.recorded == 1
    layer.train()
    with caplog.at_level(logging.WARNING):
        seen = {tuple(ask(captures, layer, rows(40)).flatten().tolist()) for _ in range(4)}
    assert len(seen) == 4
    assert fake.recorded == 1
    assert caplog.text.count("it draws random numbers (bernoulli_)") == 1


def test_weights_that_lie_elsewhere_in_every_call_end_all_recording(fake, captures, layer, caplog):
    for number in range(4 * PATIENCE):
        layer[0].weight.data = layer[0].weight.data.clone()
        with caplog.at_level(logging.WARNING):
            assert torch.equal(
                ask(captures, layer, rows(value=float(number))), layer(rows(value=float(number)))
            )
    assert fake.recorded <= PATIENCE + 1
    assert caplog.text.count("its weights lie elsewhere in every call") == 1


def test_a_wait_for_the_device_is_found_before_anything_is_recorded(fake, captures, layer, caplog):
    def waits(x):
        return layer(x) if float(x.sum()) > 0 else x

    for _ in range(4):
        assert torch.equal(ask(captures, layer, rows(), function=waits), layer(rows()))
    assert fake.recorded == 0
    assert caplog.text.count("it waits for the device (_local_scalar_dense)") == 1
    assert ask(captures, layer, -rows(), function=waits).equal(-rows())


def test_a_rehearsal_that_cannot_look_does_not_keep_work_from_being_recorded(fake, captures, layer):
    """As under a compiler that does not run with it."""

    def blind(x):
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise RuntimeError("not under a mode")
        return layer(x)

    for _ in range(3):
        assert torch.equal(ask(captures, layer, rows(), function=blind), layer(rows()))
    assert captures.kept == ["work"]


def test_a_recording_that_fails_leaves_its_shape_as_it_is_and_says_so_once(fake, captures, layer, caplog):
    fake.failures = [RuntimeError("capture\nis invalid")]
    for value in range(5):
        assert torch.equal(ask(captures, layer, rows(value=float(value))), layer(rows(value=float(value))))
    assert fake.recorded == 0
    assert caplog.text.count("runs operator by operator: RuntimeError: capture is invalid") == 1
    for _ in range(2):
        ask(captures, layer, rows(5))
    assert fake.recorded == 1


def test_a_capture_that_fails_on_the_device_ends_all_recordings_and_others_are_made_again(
    fake, captures, layer, caplog
):
    """PyTorch then lets no earlier graph run."""
    for _ in range(3):
        ask(captures, layer, rows(2))
    failed = CaptureFailed("a CUDA graph could not be captured")
    failed.__cause__ = ValueError("the reason")
    fake.failures = [failed]
    for _ in range(3):
        assert torch.equal(ask(captures, layer, rows(5)), layer(rows(5)))
    assert captures.kept == []
    assert "operator by operator: ValueError: the reason" in caplog.text
    assert torch.equal(ask(captures, layer, rows(2)), layer(rows(2)))
    assert captures.kept == ["work"]


def _wrong_from(repetition, factor):
    """Makes a fake's recordings give other numbers from some repetition on."""
    record = Fake.record

    def recorded(self, work):
        repeat, out = record(self, work)
        times = []

        def wrong():
            repeat()
            times.append(1)
            if len(times) >= repetition:
                out.mul_(factor)

        return wrong, out

    return recorded


@pytest.mark.parametrize("repetition", [1, 2, 4])
def test_a_recording_that_gives_other_numbers_is_refused_with_the_number(
    fake, captures, layer, caplog, monkeypatch, repetition
):
    """At its making, by either input, or at its first repetition after that."""
    monkeypatch.setattr(Fake, "record", _wrong_from(repetition, 1.01))
    for value in range(6):
        assert torch.equal(ask(captures, layer, rows(value=float(value))), layer(rows(value=float(value))))
    assert captures.kept == []
    assert caplog.text.count("a repetition is 0.01 of the largest number apart") == 1
    assert "at most 0.001" in caplog.text


def test_a_recording_that_holds_an_input_fast_is_refused(fake, captures, layer, caplog, monkeypatch):
    """As of a buffer that nobody copies into: right for the first input only."""
    kept = layer(rows())
    monkeypatch.setattr(Fake, "record", lambda self, work: (lambda: None, kept))
    for value in (1.0, 1.0, 2.0):
        assert torch.equal(ask(captures, layer, rows(value=value)), layer(rows(value=value)))
    assert "of the largest number apart" in caplog.text


def test_rounding_of_another_kernel_is_no_reason_and_16_bits_may_round_more(fake, monkeypatch, caplog):
    for dtype, factor, holds in (
        (torch.float32, 1 + 1e-5, True),
        (torch.float32, 1.01, False),
        (torch.bfloat16, 1.01, True),
        (torch.bfloat16, 1.1, False),
    ):
        layer = nn.Linear(3, 3).to(dtype)
        captures = Captures(lambda layer=layer: Whereabouts(layer))
        with monkeypatch.context() as patch:
            patch.setattr(Fake, "record", _wrong_from(1, factor))
            for _ in range(3):
                ask(captures, layer, rows().to(dtype))
        assert (captures.kept == ["work"]) is holds


def test_what_is_not_a_number_in_both_is_the_same(fake, captures, layer):
    for _ in range(4):
        assert ask(captures, layer, rows(value=float("nan"))).isnan().all()
    assert captures.kept == ["work"]


def test_without_memory_the_cache_shrinks_to_the_newest_and_tries_once_more(fake, captures, layer):
    for key in range(4):
        for _ in range(2):
            ask(captures, layer, rows(), key=key)
    ask(captures, layer, rows(5))
    fake.failures = [torch.OutOfMemoryError("no room")]
    assert torch.equal(ask(captures, layer, rows(5)), layer(rows(5)))
    assert fake.recorded == 5
    assert fake.cleared == 1
    assert list(captures.kept) == ["work", "work"]
    ask(captures, layer, rows(), key=3)
    assert fake.recorded == 5


def test_without_memory_at_all_the_call_is_answered_as_it_is(fake, captures, layer, caplog):
    # As the end of a failed capture hides why it failed.
    hidden = RuntimeError("capture was invalidated")
    hidden.__context__ = torch.OutOfMemoryError("no room")
    fake.failures = [hidden, torch.OutOfMemoryError("no room")]
    for _ in range(4):
        assert torch.equal(ask(captures, layer, rows()), layer(rows()))
    assert fake.recorded == 0
    assert caplog.text.count("no memory is left for it") == 1
    assert fake.cleared == 2


def test_the_recording_that_was_used_longest_ago_makes_room(fake, layer):
    captures = Captures(lambda: Whereabouts(layer), bound=2)
    for key in (0, 0, 1, 1, 0, 2, 2):
        ask(captures, layer, rows(), key=key)
    assert fake.recorded == 3
    ask(captures, layer, rows(), key=0)
    assert fake.recorded == 3
    ask(captures, layer, rows(), key=1)
    assert fake.recorded == 4
    assert BOUND > 2


def test_tensors_that_calls_share_are_copied_once(fake, captures, layer, monkeypatch):
    def with_shared(shared, x):
        return layer(x) + shared[0]

    copies = []
    copy = torch.Tensor.copy_
    monkeypatch.setattr(
        torch.Tensor, "copy_", lambda a, b, **k: copies.append(tuple(b.shape)) or copy(a, b, **k)
    )
    one, other = Kept([rows(1, 5.0), None]), Kept([rows(1, 7.0), None])
    for key in (0, 1):
        for _ in range(2):
            ask(captures, layer, rows(), key=key, function=with_shared, kept=one)
    copies.clear()
    for kept, times in ((one, 0), (other, 1), (other, 0), (one, 1)):
        copies.clear()
        for key in (0, 1):
            out = ask(captures, layer, rows(), key=key, function=with_shared, kept=kept)
            assert torch.equal(out, layer(rows()) + kept.tensors[0])
        assert copies.count((1, 3)) - 0 == times


def test_in_inference_mode_too_and_after_it(fake, captures, layer):
    with torch.inference_mode():
        given = rows()
        for _ in range(3):
            out = captures.run("work", 0, layer, given)
    assert torch.equal(out, layer(rows()))
    assert torch.equal(ask(captures, layer, rows(value=2.0)), layer(rows(value=2.0)))
    assert fake.recorded == 1


def test_recorded_work_inside_recorded_work_is_part_of_it(fake, captures, layer):
    def outer(x):
        return captures.run("inner", 1, layer, x) + 1

    for _ in range(3):
        assert torch.equal(ask(captures, layer, rows(), function=outer), layer(rows()) + 1)
    assert fake.recorded == 1


def test_what_is_counted_is_counted_in_repetitions_too(fake, layer):
    from collections import Counter

    passes = Counter()
    captures = Captures(lambda: Whereabouts(layer), passes)

    def counting(x):
        passes["expert"] += 1
        return layer(x)

    # The fake runs Python where a graph does not, once in each of three repetitions.
    for counted in (1, 3, 5, 7):
        ask(captures, layer, rows(), function=counting)
        assert passes["expert"] == counted


def test_a_copy_records_by_itself(fake, captures, layer):
    import copy

    for _ in range(2):
        ask(captures, layer, rows())
    other = copy.deepcopy(captures)
    assert other.made == 0
    for _ in range(2):
        ask(other, layer, rows())
    assert other.made == 1
