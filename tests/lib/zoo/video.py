"""Video transformers of diffusers, small."""

from __future__ import annotations

from typing import Any

import torch

from .case import Case, const, ints, ones, rand

__all__ = ["CASES"]

ROTARY = ("apply_rotary_emb",)
WAN = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
    "text_dim": 16, "freq_dim": 32, "ffn_dim": 32, "num_layers": 2, "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 32,
}  # fmt: skip
COG = {
    "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "time_embed_dim": 4,
    "text_embed_dim": 8, "num_layers": 2, "sample_width": 8, "sample_height": 8, "sample_frames": 8, "patch_size": 2,
    "temporal_compression_ratio": 4, "max_text_seq_length": 8,
}  # fmt: skip
HUNYUAN = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 1,
    "num_single_layers": 1, "num_refiner_layers": 1, "patch_size": 1, "patch_size_t": 1, "guidance_embeds": True,
    "text_embed_dim": 16, "pooled_projection_dim": 8, "rope_axes_dim": (2, 4, 4), "image_condition_type": None,
}  # fmt: skip


def _video(width: int = 16, channels: int = 4, frames: int = 2, size: int = 8, **more: Any) -> dict[str, Any]:
    return {
        "hidden_states": rand(2, channels, frames, size, size), "timestep": torch.tensor([3, 500]),
        "encoder_hidden_states": rand(2, 7, width), **more,
    }  # fmt: skip


def _cog(**more: Any) -> dict[str, Any]:
    table = rand(16, 16).sin()
    return {
        "hidden_states": rand(2, 1, 4, 8, 8), "encoder_hidden_states": rand(2, 8, 8), "timestep": torch.tensor([3, 500]),
        "image_rotary_emb": (table, table.flip(0)), **more,
    }  # fmt: skip


def _frames(count: int) -> torch.Tensor:
    return torch.arange(count).float()


def _hunyuan(size: int = 4, frames: int = 1, **more: Any) -> dict[str, Any]:
    return _video(
        frames=frames,
        size=size,
        pooled_projections=rand(2, 8),
        encoder_attention_mask=ones(2, 7),
        guidance=const(5.0),
        **more,
    )


def _framepack() -> dict[str, Any]:
    return _hunyuan(
        frames=3, image_embeds=rand(2, 5, 16), indices_latents=_frames(3), latents_clean=rand(2, 4, 2, 4, 4),
        indices_latents_clean=_frames(2), latents_history_2x=rand(2, 4, 2, 4, 4),
        indices_latents_history_2x=_frames(2), latents_history_4x=rand(2, 4, 8, 4, 4),
        indices_latents_history_4x=_frames(8),
    )  # fmt: skip


def _helios() -> dict[str, Any]:
    return {
        "hidden_states": rand(1, 4, 2, 16, 16), "timestep": ints(1000, 1), "encoder_hidden_states": rand(1, 7, 16),
        "indices_hidden_states": torch.ones(1, 2), "indices_latents_history_short": torch.ones(1, 1),
        "indices_latents_history_mid": torch.ones(1, 1), "indices_latents_history_long": torch.ones(1, 4),
        "latents_history_short": rand(1, 4, 1, 16, 16), "latents_history_mid": rand(1, 4, 1, 16, 16),
        "latents_history_long": rand(1, 4, 4, 16, 16),
    }  # fmt: skip


def _ltx(**more: Any) -> dict[str, Any]:
    return {
        "hidden_states": rand(2, 18, 4), "encoder_hidden_states": rand(2, 7, 16), "timestep": torch.tensor([3, 500]),
        "encoder_attention_mask": ones(2, 7), "num_frames": 2, "height": 3, "width": 3, **more,
    }  # fmt: skip


_LTX2 = {
    "in_channels": 4, "out_channels": 4, "patch_size": 1, "patch_size_t": 1, "num_attention_heads": 2, "attention_head_dim": 8,
    "cross_attention_dim": 16, "audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 4, "audio_cross_attention_dim": 8, "num_layers": 2, "qk_norm": "rms_norm_across_heads",
    "caption_channels": 16, "rope_double_precision": False,
}  # fmt: skip


def _ltx2() -> dict[str, Any]:
    return _ltx(
        audio_hidden_states=rand(2, 9, 4), audio_encoder_hidden_states=rand(2, 7, 16), timestep=const(500.0),
        audio_num_frames=9, fps=25.0,
    )  # fmt: skip


def _allegro() -> dict[str, Any]:
    def axis(count: int, repeats: int, tiles: int) -> torch.Tensor:
        return torch.arange(count).repeat_interleave(repeats).repeat(tiles)[None]

    tables = tuple((rand(n, 8).cos(), rand(n, 8).sin()) for n in (2, 4, 4))
    grids = (axis(2, 16, 1), axis(4, 4, 2), axis(4, 1, 8))
    return _video(
        attention_mask=torch.ones(2, 2, 8, 8), encoder_attention_mask=ones(2, 7), image_rotary_emb=(tables, grids)
    )


def _cosmos() -> dict[str, Any]:
    return {
        "hidden_states": rand(1, 4, 1, 8, 8), "timestep": ints(1000, 1), "encoder_hidden_states": rand(1, 7, 16),
        "attention_mask": ones(1, 7), "fps": 30,
    }  # fmt: skip


def _kandinsky() -> dict[str, Any]:
    return {
        "hidden_states": rand(1, 2, 4, 4, 4), "encoder_hidden_states": rand(1, 5, 12), "timestep": const(5.0, 1),
        "pooled_projections": rand(1, 10), "visual_rope_pos": [torch.arange(n) for n in (2, 2, 2)],
        "text_rope_pos": torch.arange(5), "scale_factor": (1.0, 1.0, 1.0),
    }  # fmt: skip


def _animate() -> dict[str, Any]:
    return {
        "hidden_states": rand(1, 12, 3, 8, 8), "timestep": ints(1000, 1), "encoder_hidden_states": rand(1, 7, 16),
        "encoder_hidden_states_image": rand(1, 5, 16), "pose_hidden_states": rand(1, 4, 2, 8, 8),
        "face_pixel_values": rand(1, 3, 5, 16, 16),
    }  # fmt: skip


CASES = (
    Case("WanTransformer3DModel", WAN, _video, ROTARY),
    Case("WanVACETransformer3DModel", {**WAN, "vace_layers": [0], "vace_in_channels": 8},
         lambda: _video(control_hidden_states=rand(2, 8, 2, 8, 8)), ROTARY),
    Case("WanAnimateTransformer3DModel",
         {**WAN, "in_channels": 12, "latent_channels": 4, "image_dim": 16,
          "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16}, "motion_encoder_size": 16, "motion_style_dim": 8,
          "motion_dim": 4, "motion_encoder_dim": 16, "face_encoder_hidden_dim": 16, "face_encoder_num_heads": 2,
          "inject_face_latents_blocks": 2}, _animate, ROTARY),
    Case("SkyReelsV2Transformer3DModel", WAN, _video, ROTARY),
    Case("ChronoEditTransformer3DModel", {**WAN, "rope_temporal_skip_len": 8}, _video, ROTARY),
    Case("AnyFlowTransformer3DModel",
         {**{k: v for k, v in WAN.items() if k != "qk_norm"}, "gate_value": 0.25, "deltatime_type": "r"},
         lambda: {"hidden_states": rand(1, 2, 4, 8, 8), "timestep": const(500.0, 1, 2), "r_timestep": const(250.0, 1, 2),
                  "encoder_hidden_states": rand(1, 7, 16)}, ROTARY),
    Case("HeliosTransformer3DModel",
         {**{k: v for k, v in WAN.items() if k != "rope_max_seq_len"}, "rope_dim": (4, 4, 4), "has_multi_term_memory_patch": True,
          "guidance_cross_attn": True, "zero_history_timestep": True, "is_amplify_history": False},
         _helios, ("apply_rotary_emb_transposed",)),
    Case("LTXVideoTransformer3DModel",
         {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16,
          "num_layers": 2, "qk_norm": "rms_norm_across_heads", "caption_channels": 16}, _ltx, ROTARY),
    Case("LTX2VideoTransformer3DModel", _LTX2, _ltx2, ("apply_interleaved_rotary_emb", "apply_split_rotary_emb")),
    Case("HunyuanVideoTransformer3DModel", HUNYUAN, _hunyuan, ROTARY),
    Case("HunyuanVideoFramepackTransformer3DModel",
         {**HUNYUAN, "patch_size": 2, "has_image_proj": True, "image_proj_dim": 16, "has_clean_x_embedder": True},
         _framepack, ROTARY),
    Case("HunyuanVideo15Transformer3DModel",
         {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2,
          "num_refiner_layers": 1, "mlp_ratio": 2.0, "patch_size": 1, "patch_size_t": 1, "text_embed_dim": 16,
          "text_embed_2_dim": 12, "image_embed_dim": 10, "rope_axes_dim": (2, 2, 4), "target_size": 16, "task_type": "t2v"},
         lambda: {"hidden_states": rand(1, 4, 1, 4, 4), "timestep": const(1.0, 1), "encoder_hidden_states": rand(1, 6, 16),
                  "encoder_hidden_states_2": rand(1, 4, 12), "encoder_attention_mask": torch.ones(1, 6),
                  "encoder_attention_mask_2": torch.ones(1, 4), "image_embeds": torch.zeros(1, 3, 10)}, ROTARY),
    Case("HunyuanImageTransformer2DModel",
         {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1,
          "num_single_layers": 1, "num_refiner_layers": 1, "mlp_ratio": 2.0, "patch_size": (1, 1), "guidance_embeds": False,
          "text_embed_dim": 16, "text_embed_2_dim": 12, "rope_axes_dim": (4, 4)},
         lambda: {"hidden_states": rand(1, 4, 4, 4), "timestep": const(1.0, 1), "encoder_hidden_states": rand(1, 6, 16),
                  "encoder_attention_mask": torch.ones(1, 6, dtype=torch.long), "encoder_hidden_states_2": rand(1, 4, 12),
                  "encoder_attention_mask_2": torch.ones(1, 4, dtype=torch.long)}, ROTARY),
    Case("CogVideoXTransformer3DModel", {**COG, "use_rotary_positional_embeddings": True}, _cog, ROTARY),
    Case("ConsisIDTransformer3DModel",
         {**COG, "use_rotary_positional_embeddings": True, "cross_attn_interval": 1, "is_kps": False, "is_train_face": True,
          "cross_attn_dim_head": 4, "cross_attn_num_heads": 2, "LFE_id_dim": 2, "LFE_vit_dim": 2, "LFE_depth": 5,
          "LFE_dim_head": 8,
          "LFE_num_heads": 2, "LFE_num_id_token": 1, "LFE_num_querie": 3, "LFE_output_dim": 21, "LFE_ff_mult": 1,
          "LFE_num_scale": 1},
         lambda: _cog(id_vit_hidden=[rand(2, 2, 2)], id_cond=rand(2, 2)), ROTARY),
    Case("MochiTransformer3DModel",
         {"patch_size": 2, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3, "pooled_projection_dim": 16,
          "in_channels": 4, "qk_norm": "rms_norm", "text_embed_dim": 16, "time_embed_dim": 4, "activation_fn": "swiglu",
          "max_sequence_length": 16},
         lambda: {**_video(), "encoder_attention_mask": torch.ones(2, 7, dtype=torch.bool)}, ROTARY,
         dynamo={"capture_dynamic_output_shape_ops": True}),
    Case("AllegroTransformer3DModel",
         {"num_attention_heads": 2, "attention_head_dim": 24, "in_channels": 4, "out_channels": 4, "num_layers": 2,
          "cross_attention_dim": 48, "sample_width": 8, "sample_height": 8, "sample_frames": 8, "caption_channels": 16},
         _allegro, ("apply_1d_rope",)),
    Case("LatteTransformer3DModel",
         {"sample_size": 8, "num_layers": 1, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 2,
          "caption_channels": 8, "in_channels": 4, "cross_attention_dim": 16, "out_channels": 8, "attention_bias": True,
          "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000, "norm_type": "ada_norm_single",
          "norm_elementwise_affine": False, "norm_eps": 1e-6, "video_length": 2},
         lambda: _video(8, enable_temporal_attentions=True)),
    Case("EasyAnimateTransformer3DModel",
         {"attention_head_dim": 16, "num_attention_heads": 2, "in_channels": 4, "mmdit_layers": 1, "num_layers": 2,
          "out_channels": 4, "patch_size": 2, "sample_height": 60, "sample_width": 90, "text_embed_dim": 16, "time_embed_dim": 8,
          "time_position_encoding_type": "3d_rope", "timestep_activation_fn": "silu"}, _video, ROTARY),
    Case("CosmosTransformer3DModel",
         {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2,
          "mlp_ratio": 2, "text_embed_dim": 16, "adaln_lora_dim": 4, "max_size": (4, 32, 32), "patch_size": (1, 2, 2),
          "rope_scale": (2.0, 1.0, 1.0), "concat_padding_mask": False, "extra_pos_embed_type": "learnable"}, _cosmos, ROTARY),
    Case("SanaVideoTransformer3DModel",
         {"in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2,
          "num_cross_attention_heads": 2, "cross_attention_head_dim": 12, "cross_attention_dim": 24, "caption_channels": 16,
          "mlp_ratio": 2.5, "sample_size": 8, "patch_size": (1, 2, 2), "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 32},
         lambda: _video(channels=8), ROTARY),
    Case("MotifVideoTransformer3DModel",
         {"in_channels": 9, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1,
          "num_single_layers": 1, "num_decoder_layers": 0, "patch_size": 1, "patch_size_t": 1, "qk_norm": "rms_norm",
          "norm_type": "layer_norm", "text_embed_dim": 16, "image_embed_dim": 4, "rope_theta": 256.0, "rope_axes_dim": (4, 4, 4),
          "enable_text_cross_attention_dual": True, "enable_text_cross_attention_single": True},
         lambda: _video(channels=9, size=4), ROTARY),
    Case("Kandinsky5Transformer3DModel",
         {"in_visual_dim": 4, "in_text_dim": 12, "in_text_dim2": 10, "time_dim": 16, "out_visual_dim": 4, "patch_size": (1, 2, 2),
          "model_dim": 24, "ff_dim": 32, "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (4, 4, 4)},
         _kandinsky, ("apply_rotary",)),
)  # fmt: skip
