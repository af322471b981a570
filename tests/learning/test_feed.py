"""Batches on their way to the learner's device."""

import itertools

import numpy as np
import pytest
import torch

from impala_torch.endpoint.batches import BatchQueue, QueueClosed
from impala_torch.endpoint.codec import UnrollCodec
from impala_torch.learning.feed import Feed, make_batch
from impala_torch.structures import Unroll
from tests.conftest import random_unroll, small_spec

B = 2
SENDER = (b"", b"")
CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
)


@pytest.fixture(params=["cpu", CUDA])
def device(request):
    return torch.device(request.param)


@pytest.fixture
def batches(device):
    spec = small_spec()

    made = BatchQueue(spec, B, 2, lambda: make_batch(spec, B, device))
    yield made
    made.close()


def put(batches: BatchQueue, seed: int) -> Unroll:
    unroll = random_unroll(small_spec(), B, np.random.default_rng(seed))
    buffers = [bytes(buffer) for buffer in UnrollCodec(small_spec()).encode(unroll)]
    assert batches.reserve(B)
    batches.put(SENDER, UnrollCodec(small_spec()).decode_fields(buffers, B, 0), B)
    return unroll


def test_each_batch_comes_once_in_order_and_whole_though_buffers_are_reused(batches, device):
    feed = Feed(batches, device)
    seeds = itertools.count()
    expected = [put(batches, next(seeds))]
    for number in range(20):
        batch = feed.get(5)
        on_device = feed.on_device(batch)
        # In an update there may be several chances for it, or none, and the queue may be empty.
        for _ in range(number % 3):
            feed.prepare_next()
        for name, sent, got in zip(Unroll._fields, expected.pop(0), on_device, strict=True):
            assert got.device.type == device.type
            np.testing.assert_array_equal(got.cpu().numpy(), sent, err_msg=name)
        feed.recycle(batch)
        while len(expected) < 1 + number % 2:
            expected.append(put(batches, next(seeds)))


def test_the_queues_end_is_told_as_often_as_asked(batches, device):
    feed = Feed(batches, device)
    batches.close()
    for _ in range(2):
        with pytest.raises(QueueClosed):
            feed.get(5)
        feed.prepare_next()
