"""RecGPT's network against GPT-2 as transformers has it: the same weights give the same outputs."""

from __future__ import annotations

import pytest
import torch

from ensuite.models.recgpt import RecGPT, RecGPTConfig

transformers = pytest.importorskip("transformers")


def test_without_the_block_mask_it_is_gpt_2():
    torch.manual_seed(0)
    shape = transformers.GPT2Config(vocab_size=5, n_positions=24, n_embd=16, n_layer=2, n_head=2, n_inner=40)
    theirs = transformers.GPT2Model(shape).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    config = RecGPTConfig(
        level_sizes=(9,) * 4,
        dim=16,
        blocks=2,
        heads=2,
        inner=40,
        max_length=6,
        slices=False,
        block_mask=False,
    )
    ours = RecGPT(config, 3).eval()
    with torch.no_grad():
        ours.positions.weight.copy_(theirs.wpe.weight)
        ours.norm.load_state_dict(theirs.ln_f.state_dict())
        for own, their in zip(ours.layers, theirs.h):
            own.attention_norm.load_state_dict(their.ln_1.state_dict())
            own.inner_norm.load_state_dict(their.ln_2.state_dict())
            q, kv = their.attn.c_attn.weight.split([16, 32], 1), their.attn.c_attn.bias.split([16, 32])
            for linear, weight, bias in (
                (own.attention.query, q[0], kv[0]),
                (own.attention.key_value, q[1], kv[1]),
                (own.attention.output, their.attn.c_proj.weight, their.attn.c_proj.bias),
                (own.up, their.mlp.c_fc.weight, their.mlp.c_fc.bias),
                (own.down, their.mlp.c_proj.weight, their.mlp.c_proj.bias),
            ):
                linear.weight.copy_(weight.T)
                linear.bias.copy_(bias)
        x = torch.randn(2, 24, 16)
        wanted = theirs(inputs_embeds=x).last_hidden_state
        found = ours.encode(x + ours.positions.weight, ours.block_mask(24))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_it_starts_as_gpt_2_does():
    torch.manual_seed(0)
    model = RecGPT(RecGPTConfig(level_sizes=(64,) * 4, blocks=2, max_length=64, slices=False), 3)
    residual = 0.02 / 4**0.5
    for name, std in (
        ("attention.query", 0.02),
        ("attention.output", residual),
        ("up", 0.02),
        ("down", residual),
    ):
        linear = model.layers[0].get_submodule(name)
        assert float(linear.weight.detach().std()) == pytest.approx(std, rel=0.05)
        assert not linear.bias.any()
    for table in (model.tokens, model.positions, model.head):
        assert float(table.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
