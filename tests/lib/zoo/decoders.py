"""Language models of transformers, small: decoders as text encoders of pipelines are."""

from __future__ import annotations

from typing import Any

from .case import Case, ints

__all__ = ["CASES"]

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "use_cache": False,
}  # fmt: skip


def _decoder(name: str, **config: Any) -> Case:
    return Case(
        name, {**SMALL, **config}, lambda: {"input_ids": ints(64, 2, 9)}, ("apply_rotary_pos_emb",), "transformers"
    )


CASES = (
    _decoder("LlamaModel"),
    _decoder("MistralModel"),
    _decoder("Qwen2Model"),
    _decoder("Qwen3Model", head_dim=8),
    _decoder("GemmaModel", head_dim=8),
    _decoder("Gemma2Model", head_dim=8, query_pre_attn_scalar=8),
    _decoder("Gemma3TextModel", head_dim=8, query_pre_attn_scalar=8),
    _decoder("PhiModel", partial_rotary_factor=0.5),
    _decoder("Phi3Model"),
    _decoder("GlmModel", head_dim=8, partial_rotary_factor=0.5),
    _decoder("Olmo2Model"),
    _decoder("GPTNeoXModel", rotary_pct=0.5),
    _decoder("StableLmModel", partial_rotary_factor=0.5),
    _decoder("SmolLM3Model"),
    _decoder("GraniteModel"),
    _decoder("CohereModel"),
)
