"""TIGER's network against T5 as transformers has it: the same weights give the same outputs."""

from __future__ import annotations

import pytest
import torch

from ensuite.nn.t5 import Shape, Stack, relative_bucket

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=30,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=3,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
        feed_forward_proj="relu",
        decoder_start_token_id=0,
    )
    model = transformers.T5Model(config).eval()
    for parameter in model.parameters():  # norms are all 1 at first
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def copied(their_stack, causal: bool, cross: bool) -> Stack:
    """Return our stack with their weights."""
    shape = Shape(dim=16, heads=3, head_dim=8, inner=24, dropout=0.0, buckets=8, furthest=20)
    ours = Stack(shape, 2, causal=causal, cross=cross).eval()

    def attention(own, their) -> None:
        own.query.weight.copy_(their.q.weight)
        own.key_value.weight.copy_(torch.cat([their.k.weight, their.v.weight]))
        own.output.weight.copy_(their.o.weight)

    with torch.no_grad():
        for own, block in zip(ours.layers, their_stack.block):
            first, *middle, last = block.layer
            own.norm.weight.copy_(first.layer_norm.weight)
            attention(own.attention, first.SelfAttention)
            if cross:
                own.cross_norm.weight.copy_(middle[0].layer_norm.weight)
                attention(own.cross, middle[0].EncDecAttention)
            own.inner_norm.weight.copy_(last.layer_norm.weight)
            own.inner.up.weight.copy_(last.DenseReluDense.wi.weight)
            own.inner.down.weight.copy_(last.DenseReluDense.wo.weight)
        bias = their_stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        ours.position_bias.weight.copy_(bias)
        ours.norm.weight.copy_(their_stack.final_layer_norm.weight)
    return ours


def test_encoder_and_decoder_give_the_outputs_of_t5(theirs):
    tokens = torch.randint(1, 30, (3, 12))
    mask = torch.arange(12) < torch.tensor([12, 5, 9])[:, None]
    written = torch.randint(1, 30, (3, 4))
    encoder = copied(theirs.encoder, causal=False, cross=False)
    decoder = copied(theirs.decoder, causal=True, cross=True)
    with torch.inference_mode():
        wanted = theirs(input_ids=tokens, attention_mask=mask.long(), decoder_input_ids=written)
        memory = encoder(theirs.shared(tokens), mask)
        assert torch.allclose(memory[mask], wanted.encoder_last_hidden_state[mask], atol=1e-4)
        x = theirs.shared(written)
        assert torch.allclose(decoder(x, None, memory, mask), wanted.last_hidden_state, atol=1e-4)
        # and token by token, as in a search
        one = torch.ones(3, dtype=torch.int64)
        hidden, cache = decoder.begin(x[:, :1], one, memory, mask)
        assert torch.allclose(hidden[:, 0], wanted.last_hidden_state[:, 0], atol=1e-4)
        for at in range(1, 4):
            hidden, cache = decoder.step(x[:, at : at + 1], torch.zeros(3, 1, dtype=torch.int64), cache)
            assert torch.allclose(hidden[:, 0], wanted.last_hidden_state[:, at], atol=1e-4)


def test_distances_fall_into_the_buckets_of_t5(theirs):
    attention = theirs.encoder.block[0].layer[0].SelfAttention
    distance = torch.arange(-300, 301)
    for both_ways in (True, False):
        wanted = attention._relative_position_bucket(distance, both_ways, 32, 128)
        assert torch.equal(relative_bucket(distance, 32, 128, both_ways), wanted)
