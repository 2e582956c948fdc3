"""The cache of T5's blocks: what beams share is read once, and a step gives what reading anew would."""

from __future__ import annotations

import pytest
import torch

from ensuite.nn.t5 import Shape, Stack, relative_bucket

SHAPE = Shape(dim=16, heads=3, head_dim=8, inner=24, dropout=0.1, buckets=8, furthest=20)


@pytest.mark.parametrize("cross", [False, True])
def test_steps_give_what_reading_the_whole_gives(cross):
    torch.manual_seed(0)
    stack = Stack(SHAPE, 2, causal=True, cross=cross).eval()
    memory = torch.randn(2, 5, 16) if cross else None
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool() if cross else None
    prefix, lengths = torch.randn(2, 6, 16), torch.tensor([4, 6])
    tokens = torch.randn(2, 3, 2, 16)  # two steps of three beams
    parents = torch.tensor([[2, 0, 0], [1, 1, 2]])
    with torch.inference_mode():
        output, cache = stack.begin(prefix, lengths, memory, mask)
        one, middle = stack.step(tokens[:, :, 0], torch.zeros(2, 3, dtype=torch.int64), cache)
        two, _ = stack.step(tokens[:, :, 1], parents, middle)
        again, _ = stack.step(tokens[:, :, 1], parents, middle)
        assert torch.equal(two, again)  # a step leaves the cache as it was
        for user in range(2):
            own = slice(user, user + 1)
            kept = prefix[own, : lengths[user]]
            read = (None, None) if memory is None else (memory[own], mask[own])
            assert torch.allclose(stack(kept, None, *read)[:, -1], output[own, 0], atol=1e-5)
            for beam in range(3):
                parent = int(parents[user, beam])
                x = torch.cat([kept, tokens[own, parent, :1], tokens[own, beam, 1:]], 1)
                whole = stack(x, None, *read)
                assert torch.allclose(whole[0, -1], two[user, beam], atol=1e-5)
                x = torch.cat([kept, tokens[own, beam, :1]], 1)
                assert torch.allclose(stack(x, None, *read)[0, -1], one[user, beam], atol=1e-5)


def test_an_encoder_does_not_see_padding():
    torch.manual_seed(0)
    stack = Stack(SHAPE, 2, causal=False).eval()
    x = torch.randn(2, 6, 16)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    with torch.inference_mode():
        assert torch.allclose(stack(x, mask)[0, :4], stack(x[:1, :4], mask[:1, :4])[0], atol=1e-5)
        changed = x.clone()
        changed[0, 1] += 1
        assert not torch.allclose(stack(changed, mask)[0, 0], stack(x, mask)[0, 0], atol=1e-3)


def test_a_causal_stack_sees_nothing_later():
    torch.manual_seed(0)
    stack = Stack(SHAPE, 2, causal=True).eval()
    x = torch.randn(1, 6, 16)
    changed = x.clone()
    changed[0, 3:] += 1
    with torch.inference_mode():
        assert torch.allclose(stack(x, None)[0, :3], stack(changed, None)[0, :3], atol=1e-6)


def test_buckets_of_relative_positions():
    distance = torch.tensor([-200, -20, -19, -5, -4, -3, -1, 0, 1, 7])
    assert relative_bucket(distance, 8, 20, both_ways=False).tolist() == [7, 7, 7, 4, 4, 3, 1, 0, 0, 0]
    assert relative_bucket(distance, 8, 20, both_ways=True).tolist() == [3, 3, 3, 2, 2, 2, 1, 0, 5, 7]
