"""Image transformers of diffusers, small."""

from __future__ import annotations

from typing import Any

import torch

from .case import Case, const, ints, ones, rand

__all__ = ["CASES"]

FLUX = {
    "patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 24, "axes_dims_rope": (4, 4, 8),
}  # fmt: skip
ROTARY = ("apply_rotary_emb",)


def _ids(axes: int, tokens: int) -> torch.Tensor:
    return ints(9, tokens, axes).float()


def _flux(batch: int = 2, width: int = 24, channels: int = 4, axes: int = 3, **more: Any) -> dict[str, Any]:
    return {
        "hidden_states": rand(batch, 12, channels), "encoder_hidden_states": rand(batch, 7, width),
        "timestep": const(0.5, batch), "img_ids": _ids(axes, 12), "txt_ids": _ids(axes, 7), **more,
    }  # fmt: skip


def _latents(width: int = 8, tokens: int = 7, size: int = 8, channels: int = 4, **more: Any) -> dict[str, Any]:
    return {
        "hidden_states": rand(2, channels, size, size), "encoder_hidden_states": rand(2, tokens, width),
        "timestep": torch.tensor([3, 500]), **more,
    }  # fmt: skip


def _sizes() -> dict[str, Any]:
    size = torch.tensor([[64.0, 64.0]] * 2)
    return {"original_size": size, "target_size": size, "crop_coords": size * 0}


def _omnigen() -> dict[str, Any]:
    tokens = 20 + 1 + 16
    return {
        "hidden_states": rand(2, 4, 8, 8), "timestep": const(0.5), "input_ids": ints(10, 2, 20),
        "input_img_latents": [rand(1, 4, 8, 8)], "input_image_sizes": {0: [[0, 16]]},
        "attention_mask": torch.ones(2, tokens, tokens).tril(),
        "position_ids": torch.arange(tokens).repeat(2, 1),
    }  # fmt: skip


def _hunyuan_dit() -> dict[str, Any]:
    table = rand(16, 8).sin()
    return _latents(
        tokens=4, timestep=const(5.0), text_embedding_mask=torch.ones(2, 4), encoder_hidden_states_t5=rand(2, 4, 8),
        text_embedding_mask_t5=torch.ones(2, 4), image_meta_size=torch.tensor([[64.0, 64, 16, 16, 0, 0]] * 2),
        style=torch.zeros(2, dtype=torch.long), image_rotary_emb=(table, table.flip(0)),
    )  # fmt: skip


def _ideogram() -> dict[str, Any]:
    from diffusers.models.transformers import transformer_ideogram4 as source

    tokens, text = 10, 4
    indicator = torch.full((1, tokens), source.OUTPUT_IMAGE_INDICATOR)
    indicator[:, :text] = source.LLM_TOKEN_INDICATOR
    return {
        "hidden_states": rand(1, tokens, 8), "encoder_hidden_states": rand(1, tokens, 12), "timestep": const(0.5, 1),
        "position_ids": ints(9, 1, tokens, 3), "segment_ids": torch.ones(1, tokens, dtype=torch.long), "indicator": indicator,
    }  # fmt: skip


def _qwen(**more: Any) -> dict[str, Any]:
    return {
        "hidden_states": rand(2, 16, 16), "encoder_hidden_states": rand(2, 7, 16), "timestep": const(0.5),
        "encoder_hidden_states_mask": torch.ones(2, 7, dtype=torch.long), "img_shapes": [(1, 4, 4)] * 2, **more,
    }  # fmt: skip


_QWEN = {
    "patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 3, "joint_attention_dim": 16, "axes_dims_rope": (8, 4, 4),
}  # fmt: skip
_ADA = {"attention_bias": True, "activation_fn": "gelu-approximate", "norm_elementwise_affine": False, "norm_eps": 1e-6}

CASES = (
    Case("FluxTransformer2DModel", {**FLUX, "pooled_projection_dim": 32},
         lambda: _flux(pooled_projections=rand(2, 32)), ROTARY),
    Case("Flux2Transformer2DModel", {**FLUX, "axes_dims_rope": (4, 4, 4, 4)},
         lambda: _flux(axes=4, guidance=const(1.0)), ROTARY),
    Case("ChromaTransformer2DModel",
         {**FLUX, "approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1}, _flux, ROTARY),
    Case("BriaTransformer2DModel", {**FLUX, "pooled_projection_dim": None}, _flux, ROTARY),
    Case("BriaFiboTransformer2DModel", {**FLUX, "pooled_projection_dim": None, "text_encoder_dim": 12},
         lambda: _flux(text_encoder_layers=[rand(2, 7, 12), rand(2, 7, 12)]), ROTARY),
    Case("LongCatImageTransformer2DModel", {**FLUX, "pooled_projection_dim": 32},
         lambda: _flux(guidance=const(3.5)), ROTARY),
    Case("OvisImageTransformer2DModel", {**FLUX, "out_channels": 4}, _flux, ROTARY),
    Case("SD3Transformer2DModel",
         {"sample_size": 8, "patch_size": 1, "in_channels": 4, "num_layers": 3, "attention_head_dim": 8, "num_attention_heads": 3,
          "caption_projection_dim": 24, "joint_attention_dim": 20, "pooled_projection_dim": 16, "out_channels": 4,
          "pos_embed_max_size": 16, "dual_attention_layers": (0,), "qk_norm": "rms_norm"},
         lambda: _latents(20, pooled_projections=rand(2, 16))),
    Case("AuraFlowTransformer2DModel",
         {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_mmdit_layers": 1, "num_single_dit_layers": 1,
          "attention_head_dim": 8, "num_attention_heads": 3, "caption_projection_dim": 24, "joint_attention_dim": 20,
          "out_channels": 4, "pos_embed_max_size": 64}, lambda: _latents(20)),
    Case("DiTTransformer2DModel",
         {"in_channels": 4, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "patch_size": 2,
          "sample_size": 8, "num_embeds_ada_norm": 8, "norm_type": "ada_norm_zero", "activation_fn": "gelu-approximate"},
         lambda: {"hidden_states": rand(2, 4, 8, 8), "timestep": torch.tensor([3, 500]), "class_labels": ints(4, 2)}),
    Case("PixArtTransformer2DModel",
         {"sample_size": 8, "num_layers": 2, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 2, "in_channels": 4,
          "cross_attention_dim": 16, "out_channels": 8, "num_embeds_ada_norm": 8, "norm_type": "ada_norm_single",
          "use_additional_conditions": False,
          "caption_channels": 12, **_ADA},
         lambda: _latents(12, encoder_attention_mask=ones(2, 7), added_cond_kwargs={"aspect_ratio": None, "resolution": None})),
    Case("PriorTransformer",
         {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "embedding_dim": 16, "num_embeddings": 7,
          "additional_embeddings": 4},
         lambda: {"hidden_states": rand(2, 16), "timestep": 2, "proj_embedding": rand(2, 16),
                  "encoder_hidden_states": rand(2, 7, 16)}),
    Case("HunyuanDiT2DModel",
         {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2,
          "cross_attention_dim": 8, "cross_attention_dim_t5": 8, "pooled_projection_dim": 4, "hidden_size": 16, "text_len": 4,
          "text_len_t5": 4, "activation_fn": "gelu-approximate"}, _hunyuan_dit, ROTARY),
    Case("LuminaNextDiT2DModel",
         {"sample_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 48, "num_layers": 2, "num_attention_heads": 3,
          "num_kv_heads": 1, "multiple_of": 16, "learn_sigma": False, "qk_norm": True, "cross_attention_dim": 20},
         lambda: {"hidden_states": rand(2, 4, 8, 8), "encoder_hidden_states": rand(2, 7, 20), "timestep": const(0.5),
                  "encoder_mask": ones(2, 7), "image_rotary_emb": torch.polar(torch.ones(384, 384, 8), rand(384, 384, 8)),
                  "cross_attention_kwargs": {}}, ROTARY),
    Case("Lumina2Transformer2DModel",
         {"sample_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 24, "num_layers": 2, "num_refiner_layers": 1,
          "num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 2, "axes_dim_rope": (4, 2, 2), "axes_lens": (32, 32, 32),
          "cap_feat_dim": 20},
         lambda: {"hidden_states": rand(2, 4, 8, 8), "encoder_hidden_states": rand(2, 7, 20), "timestep": const(0.5),
                  "encoder_attention_mask": torch.ones(2, 7, dtype=torch.bool)}, ROTARY),
    Case("SanaTransformer2DModel",
         {"patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2,
          "num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 8,
          "sample_size": 8},
         lambda: _latents(8, encoder_attention_mask=ones(2, 7))),
    Case("CogView3PlusTransformer2DModel",
         {"patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "out_channels": 4,
          "text_embed_dim": 8, "time_embed_dim": 8, "condition_dim": 2, "pos_embed_max_size": 8, "sample_size": 8},
         lambda: _latents(8, **_sizes())),
    Case("CogView4Transformer2DModel",
         {"patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 3, "out_channels": 4,
          "text_embed_dim": 8, "time_embed_dim": 8, "condition_dim": 4, "rope_axes_dim": (8, 8)},
         lambda: _latents(8, **_sizes()), ROTARY),
    Case("GlmImageTransformer2DModel",
         {"patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 3,
          "text_embed_dim": 20, "time_embed_dim": 16, "condition_dim": 8, "prior_vq_quantizer_codebook_size": 64},
         lambda: {**_latents(20), "prior_token_id": ints(64, 2, 16), "prior_token_drop": torch.zeros(2, 16, dtype=torch.bool),
                  "target_size": torch.tensor([[8.0, 8.0]] * 2), "crop_coords": torch.zeros(2, 2)}, ROTARY),
    Case("HiDreamImageTransformer2DModel",
         {"patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8,
          "num_attention_heads": 4, "caption_channels": [8, 4], "text_emb_dim": 8, "num_routed_experts": 2,
          "num_activated_experts": 2, "axes_dims_rope": (4, 2, 2), "max_resolution": (32, 32), "llama_layers": (0, 1),
          "force_inference_output": True},
         lambda: {"hidden_states": rand(2, 4, 8, 8), "encoder_hidden_states_t5": rand(2, 7, 8),
                  "encoder_hidden_states_llama3": rand(2, 2, 7, 4), "pooled_embeds": rand(2, 8),
                  "timesteps": torch.tensor([3, 500])},
         ("apply_rope",)),
    Case("QwenImageTransformer2DModel", _QWEN, _qwen, ("apply_rotary_emb_qwen",)),
    Case("NucleusMoEImageTransformer2DModel", {**_QWEN, "moe_enabled": False, "capacity_factors": [8.0, 8.0]},
         _qwen, ("_apply_rotary_emb_nucleus",)),
    Case("ZImageTransformer2DModel",
         {"all_patch_size": (2,), "all_f_patch_size": (1,), "in_channels": 16, "dim": 32, "n_layers": 2, "n_refiner_layers": 1,
          "n_heads": 2, "n_kv_heads": 2, "qk_norm": True, "cap_feat_dim": 12, "axes_dims": [8, 4, 4], "axes_lens": [256, 32, 32]},
         lambda: {"x": [rand(16, 1, 8, 8)], "cap_feats": [rand(16, 12)], "t": const(0.5, 1)}, ROTARY),
    Case("ErnieImageTransformer2DModel",
         {"hidden_size": 32, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 16, "in_channels": 8, "out_channels": 8,
          "patch_size": 1, "text_in_dim": 12, "rope_theta": 256, "rope_axes_dim": (8, 4, 4), "qk_layernorm": True},
         lambda: {"hidden_states": rand(2, 8, 4, 4), "timestep": const(5.0), "text_bth": rand(2, 6, 12),
                  "text_lens": torch.tensor([6, 4])}, ROTARY),
    Case("OmniGenTransformer2DModel",
         {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 32, "num_layers": 2,
          "pad_token_id": 0, "vocab_size": 100, "in_channels": 4, "time_step_dim": 4,
          "rope_scaling": {"long_factor": [1, 2, 3, 4], "short_factor": [1, 2, 3, 4]}}, _omnigen, ROTARY),
    Case("PRXTransformer2DModel",
         {"in_channels": 4, "patch_size": 2, "context_in_dim": 20, "hidden_size": 48, "mlp_ratio": 2.0, "num_heads": 3, "depth": 2,
          "axes_dim": [8, 8], "theta": 10000},
         lambda: {"hidden_states": rand(2, 4, 8, 8), "encoder_hidden_states": rand(2, 7, 20), "timestep": const(0.5),
                  "attention_mask": ones(2, 7)}, ("apply_rope",)),
    Case("Ideogram4Transformer2DModel",
         {"in_channels": 8, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "intermediate_size": 32,
          "adaln_dim": 16, "llm_features_dim": 12, "rope_theta": 10000, "mrope_section": (2, 1, 1)},
         _ideogram, ("_rotate_half",)),
    Case("Krea2Transformer2DModel",
         {"in_channels": 8, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
          "intermediate_size": 32, "timestep_embed_dim": 8, "text_hidden_dim": 16, "num_text_layers": 3,
          "text_num_attention_heads": 2, "text_num_key_value_heads": 1, "text_intermediate_size": 16,
          "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1, "axes_dims_rope": (4, 2, 2)},
         lambda: {"hidden_states": rand(1, 12, 8), "encoder_hidden_states": rand(1, 6, 3, 16), "timestep": const(0.5, 1),
                  "position_ids": ints(9, 18, 3).float(), "encoder_attention_mask": ones(1, 6)}, ROTARY),
    Case("JoyImageEditTransformer3DModel",
         {"patch_size": [1, 2, 2], "in_channels": 8, "hidden_size": 32, "num_attention_heads": 2, "text_dim": 16, "num_layers": 2,
          "rope_dim_list": [4, 6, 6], "theta": 256},
         lambda: {"hidden_states": rand(2, 8, 1, 4, 4), "encoder_hidden_states": rand(2, 7, 16), "timestep": const(1.0)},
         ("_apply_rotary_emb",)),
    Case("JoyImageEditPlusTransformer3DModel",
         {"patch_size": [1, 2, 2], "in_channels": 8, "hidden_size": 32, "num_attention_heads": 2, "text_dim": 16, "num_layers": 2,
          "rope_dim_list": [4, 6, 6], "theta": 256},
         lambda: {"hidden_states": rand(1, 2, 8, 1, 2, 2), "encoder_hidden_states": rand(1, 7, 16), "timestep": const(1.0, 1),
                  "shape_list": [[(1, 1, 1), (1, 1, 1)]]}, ("_apply_rotary_emb_batched",)),
)  # fmt: skip
