//! One name for each tensor, whichever library stored it: timm's.

use super::config::Family;

/// What wraps a whole model, outermost first.
const PREFIXES: [&str; 7] = [
    "module.",
    "model.",
    "backbone.",
    "vit.",
    "deit.",
    "dinov2.",
    "swin.",
];

/// Hugging Face's names, and those of DINOv2's own repository. In order: later
/// ones are parts of earlier ones.
const PARTS: [(&str, &str); 34] = [
    ("dinov2_with_registers.", ""),
    ("encoder.layers.", "layers."),
    ("encoder.layer.", "blocks."),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.distillation_token", "dist_token"),
    ("embeddings.register_tokens", "reg_token"),
    ("register_tokens", "reg_token"),
    ("embeddings.mask_token", "mask_token"),
    ("embeddings.norm", "patch_embed.norm"),
    ("attention.relative_position_bias.", "attn."),
    ("attention.attention.", "attn."),
    ("attention.self.", "attn."),
    ("attention.output.dense", "attn.proj"),
    ("attention.o_proj", "attn.proj"),
    ("attention.q_proj", "attn.query"),
    ("attention.k_proj", "attn.key"),
    ("attention.v_proj", "attn.value"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("layernorm", "norm"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("mlp.weights_in", "mlp.fc1"),
    ("mlp.weights_out", "mlp.fc2"),
    ("mlp.gate_proj", "mlp.w1"),
    ("mlp.up_proj", "mlp.w2"),
    ("mlp.down_proj", "mlp.fc2"),
    ("cls_classifier", "head"),
    ("distillation_classifier", "head_dist"),
    ("classifier", "head"),
];

/// timm's name of the tensor that a file calls `name`.
pub(super) fn canonical(name: &str, family: Family) -> String {
    let mut rest = name;
    for prefix in PREFIXES {
        rest = rest.strip_prefix(prefix).unwrap_or(rest);
    }
    let mut name = rest.to_owned();
    for (from, to) in PARTS {
        name = name.replace(from, to);
    }
    // DINOv2's own SwiGLU, timm's Swin, and a ViT of transformers 5.
    name = name
        .replace("mlp.w12.", "mlp.fc1.")
        .replace("mlp.w3.", "mlp.fc2.");
    name = name.replace("head.fc.", "head.");
    match (family, name.strip_prefix("layers.")) {
        (Family::Vit, Some(block)) => format!("blocks.{block}"),
        (Family::Vit, None) | (Family::Swin, _) => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_agree() {
        for (name, family, expected) in [
            (
                "blocks.3.attn.qkv.weight",
                Family::Vit,
                "blocks.3.attn.qkv.weight",
            ),
            (
                "vit.encoder.layer.3.attention.attention.query.bias",
                Family::Vit,
                "blocks.3.attn.query.bias",
            ),
            (
                "vit.layers.3.attention.q_proj.bias",
                Family::Vit,
                "blocks.3.attn.query.bias",
            ),
            (
                "vit.layers.3.mlp.fc1.bias",
                Family::Vit,
                "blocks.3.mlp.fc1.bias",
            ),
            (
                "deit.encoder.layer.0.attention.output.dense.weight",
                Family::Vit,
                "blocks.0.attn.proj.weight",
            ),
            (
                "deit.encoder.layer.0.output.dense.weight",
                Family::Vit,
                "blocks.0.mlp.fc2.weight",
            ),
            ("vit.layernorm.bias", Family::Vit, "norm.bias"),
            (
                "distillation_classifier.weight",
                Family::Vit,
                "head_dist.weight",
            ),
            ("embeddings.register_tokens", Family::Vit, "reg_token"),
            (
                "encoder.layer.7.mlp.weights_in.weight",
                Family::Vit,
                "blocks.7.mlp.fc1.weight",
            ),
            (
                "blocks.7.mlp.w12.weight",
                Family::Vit,
                "blocks.7.mlp.fc1.weight",
            ),
            (
                "blocks.7.mlp.w3.weight",
                Family::Vit,
                "blocks.7.mlp.fc2.weight",
            ),
            (
                "swin.encoder.layers.1.blocks.0.attention.self.relative_position_bias_table",
                Family::Swin,
                "layers.1.blocks.0.attn.relative_position_bias_table",
            ),
            (
                "swin.encoder.layers.1.blocks.0.attention.relative_position_bias.relative_position_bias_table",
                Family::Swin,
                "layers.1.blocks.0.attn.relative_position_bias_table",
            ),
            (
                "layers.1.downsample.norm.weight",
                Family::Swin,
                "layers.1.downsample.norm.weight",
            ),
            ("head.fc.weight", Family::Swin, "head.weight"),
        ] {
            assert_eq!(canonical(name, family), expected);
        }
    }
}
