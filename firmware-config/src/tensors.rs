//! Names of the graphs' inputs and outputs. The exporter writes them, an engine finds tensors by
//! them, and both read them here.

/// Input of the vision encoder: `[1, 1, 3, T, T]` f32, a normalised tile.
pub const PIXEL_VALUES: &str = "pixel_values";
/// Input of the vision encoder: `[1, 1, T, T]` bool, which pixels are an image's.
pub const PIXEL_ATTENTION_MASK: &str = "pixel_attention_mask";
/// Output of the vision encoder: `[1, S, H]` f32.
pub const IMAGE_FEATURES: &str = "image_features";
/// Input of the embedding: `[1, N]` i64.
pub const INPUT_IDS: &str = "input_ids";
/// Output of the embedding and input of the decoder: `[1, N, H]` f32.
pub const INPUTS_EMBEDS: &str = "inputs_embeds";
/// Input of the decoder: `[1, P + N]` i64, 1 for every position.
pub const ATTENTION_MASK: &str = "attention_mask";
/// Input of the decoder: `[1, N]` i64.
pub const POSITION_IDS: &str = "position_ids";
/// Output of the decoder: `[1, N, vocabulary]` f32.
pub const LOGITS: &str = "logits";

/// The decoder's inputs with the cache so far, `[1, heads, P, width]` f32: key and value of each
/// layer, in this order.
pub fn past_key_values(layers: usize) -> impl Iterator<Item = [String; 2]> {
    cache("past_key_values", layers)
}

/// The decoder's outputs with the cache grown by `N`, in the order of [`past_key_values`].
pub fn present(layers: usize) -> impl Iterator<Item = [String; 2]> {
    cache("present", layers)
}

fn cache(prefix: &str, layers: usize) -> impl Iterator<Item = [String; 2]> {
    (0..layers).map(move |layer| ["key", "value"].map(|kind| format!("{prefix}.{layer}.{kind}")))
}
